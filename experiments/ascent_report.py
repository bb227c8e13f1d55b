def report(content): return ""

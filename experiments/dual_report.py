"""The reports of the dual experiments."""


def influence(content):
    return str(content)


control = timing = influence

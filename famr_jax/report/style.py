"""Colours and CSS of a report page: light on screen and paper, dark where a reader asks for it."""

# Okabe-Ito hues and neutrals as (light scheme, dark scheme). Every light value is distinct: plots
# are drawn in it and the SVG then names the CSS variable, so that one drawing serves both schemes.
COLOURS = {
    "ink": ("#1f2328", "#eceae5"),
    "muted": ("#646a72", "#a5a8ad"),
    "rule": ("#e3e1db", "#3a3d42"),
    "paper": ("#ffffff", "#17191c"),
    "wash": ("#f6f5f1", "#202327"),
    "grey": ("#7d8086", "#9da1a7"),
    "blue": ("#0072b2", "#56b4e8"),
    "vermillion": ("#d55e00", "#f08a3c"),
    "green": ("#009e73", "#2cc598"),
    "purple": ("#cc79a7", "#dd93bb"),
}


def colour(name: str) -> str:
    """Hex value of a colour in the light scheme, the one to draw with."""
    return COLOURS[name][0]


def _variables(scheme: int) -> str:
    return "".join(f"--{name}:{pair[scheme]};" for name, pair in COLOURS.items())


_LAYOUT = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{margin:0;background:var(--paper);color:var(--ink);font:400 16px/1.55 var(--font);
 font-variant-numeric:tabular-nums}
main{max-width:1120px;margin:0 auto;padding:72px 40px 96px}
h1{font-size:2.3rem;line-height:1.15;letter-spacing:-.02em;font-weight:650;margin:0 0 .5rem}
h2{font-size:1.55rem;line-height:1.25;letter-spacing:-.01em;font-weight:650;margin:0 0 .4rem}
h3{font-size:1.05rem;line-height:1.35;font-weight:650;margin:0 0 .3rem}
p{margin:0 0 .9rem;max-width:46rem}
p.lead{font-size:1.12rem;color:var(--muted)}
p.note,caption,figcaption,small{font-size:.82rem;line-height:1.45;color:var(--muted)}
section{margin-top:72px;padding-top:28px;border-top:1px solid var(--rule)}
section section{margin-top:48px;padding-top:0;border-top:0}
section section h2{font-size:1.15rem}
.key+section{margin-top:24px}
figure{margin:0;min-width:0}
figure svg,svg.strip{display:block;height:auto;max-width:100%;overflow:visible}
td svg.strip{min-width:112px}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption{margin-top:.4rem;max-width:46rem}
.grid{display:grid;gap:28px 24px;align-items:start;margin:1.1rem 0;
 grid-template-columns:repeat(auto-fit,minmax(min(var(--min),100%),1fr))}
.tile{border-top:2px solid var(--ink);padding-top:10px}
.tile b{display:block;font-size:2.1rem;line-height:1.15;letter-spacing:-.02em;font-weight:600}
.tile b span{font-size:1rem;font-weight:400;letter-spacing:0;color:var(--muted)}
.tile>span{display:block;font-size:.88rem;line-height:1.5}
.tile svg.strip{margin-top:8px}
.panel{background:var(--wash);border-radius:10px;padding:28px 30px 24px;margin:20px 0}
.panel>:last-child{margin-bottom:0}
.scroll{overflow-x:auto;margin:1.1rem 0}
table{border-collapse:collapse;width:100%;font-size:.88rem;line-height:1.4}
caption{text-align:left;caption-side:bottom;padding-top:.6rem}
th{font-weight:600;text-align:left;vertical-align:bottom;color:var(--muted);font-size:.78rem;
 padding:0 16px 8px 0;border-bottom:1px solid var(--ink)}
td{vertical-align:top;padding:9px 16px 9px 0;border-bottom:1px solid var(--rule)}
.num{text-align:right}
td.num{white-space:nowrap}
td small{display:block;max-width:44ch;min-width:20ch}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:0 28px;margin:1rem 0;
 font-size:.86rem}
dl div{display:flex;justify-content:space-between;gap:14px;padding:5px 0;
 border-bottom:1px solid var(--rule)}
dt{color:var(--muted)}
dd{margin:0;text-align:right;overflow-wrap:anywhere}
.badge{display:inline-block;font-size:.78rem;line-height:1.3;white-space:nowrap;padding:1px 8px;
 border-radius:9px;border:1px solid var(--grey);color:var(--ink)}
.badge.good{border-color:var(--blue);background:color-mix(in srgb,var(--blue) 12%,transparent)}
.badge.bad{border-color:var(--vermillion);
 background:color-mix(in srgb,var(--vermillion) 14%,transparent)}
.key{font-size:.84rem;color:var(--muted);margin:.2rem 0 .6rem}
.key>span{white-space:nowrap;margin-right:1.2em}
.badges{display:flex;flex-wrap:wrap;gap:8px;align-items:baseline;font-size:.88rem}
.dot{display:inline-block;width:.72em;height:.72em;border-radius:50%;margin-right:.4em;
 background:var(--c)}
.card{font-size:.8rem;line-height:1.35;min-width:0}
.card img{display:block;width:100%;max-width:112px;aspect-ratio:1;object-fit:contain;
 image-rendering:pixelated;background:var(--wash);border-radius:4px;margin-bottom:6px}
.bar{display:flex;justify-content:space-between;gap:6px;padding:2px 6px;margin-top:3px;
 border-left:3px solid var(--c);background:linear-gradient(90deg,
 color-mix(in srgb,var(--c) 22%,transparent) var(--w),var(--wash) var(--w))}
.bar span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
@media (max-width:640px){
 .grid{gap:22px 16px}
 .tile b{font-size:1.8rem}
 main{padding:36px 20px 56px}
 h1{font-size:1.75rem}
 section{margin-top:52px}
 .panel{padding:20px 18px 16px}
 table.cards{display:flex;flex-direction:column}
 .cards tbody,.cards caption{display:block}
 .cards caption{order:1}
 .cards thead{display:none}
 .cards tr{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:6px 14px;
  padding:14px 0;border-bottom:1px solid var(--rule)}
 .cards td{padding:0;border:0;text-align:left;overflow-wrap:anywhere}
 .cards td.num{white-space:normal}
 .cards td:first-child,.cards td.wide{grid-column:1/-1}
 .cards td:not(:first-child)::before{content:attr(data-label);display:block;font-size:.72rem;
  color:var(--muted)}
}
@media print{
 @page{margin:16mm 14mm}
 body{font-size:10.5pt}
 main{max-width:none;padding:0}
 section{margin-top:28pt;padding-top:14pt}
 section section{margin-top:20pt}
 h2,h3,.key{break-after:avoid}
 .grid{gap:14pt 12pt;
  grid-template-columns:repeat(auto-fit,minmax(min(calc(var(--min)*.65),100%),1fr))}
 table{font-size:7.5pt}
 th,td{padding:4pt 7pt 4pt 0}
 th,td small,.badge,caption{font-size:6.8pt}
 td svg.strip{min-width:80px;width:80px}
 .card{font-size:7pt}
 .card img{max-width:64px}
 figure,tr,.card,.tile,.panel,dl div{break-inside:avoid}
 .scroll{overflow:visible}
}
"""

CSS = (
    ":root{color-scheme:light dark;--font:-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,'Liberation Sans',sans-serif;"
    + _variables(0)
    + "}\n@media screen and (prefers-color-scheme:dark){:root{"
    + _variables(1)
    + "}}"
    + _LAYOUT
)

"""The look of the report: light and dark by the reader's choice, and on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbf9; --card: #fff; --ink: #1d2126; --soft: #5d6670;
  --rule: #dfe2e5; --first: #1769aa; --second: #c2571a; --warn: #fff3d6; --warn-edge: #d99a00 }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1c2024; --ink: #e6e9ec;
  --soft: #9aa5b0; --rule: #343a41; --first: #62b0f0; --second: #f0935c; --warn: #3a2f14;
  --warn-edge: #d99a00 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--ground);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem } h2 { font-size: 1.2rem; margin: 0 0 .75rem }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem } p { margin: .5rem 0 } .soft { color: var(--soft) }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1.25rem 1.4rem; margin: 1.25rem 0 }
.headline { font-size: 2.6rem; font-weight: 650; line-height: 1.1; font-variant-numeric: tabular-nums }
.banner { background: var(--warn); border-left: 4px solid var(--warn-edge); border-radius: 4px;
  padding: .5rem .8rem; margin: 0 0 .9rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; overflow-wrap: anywhere } th { font-weight: 600 }
tbody th { font-weight: 500; width: 32% } code, pre {
  font: .87em ui-monospace, "DejaVu Sans Mono", monospace }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem }
svg { max-width: 100%; height: auto } figure { margin: 0 } figcaption { color: var(--soft); font-size: .9rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); gap: .7rem }
.pictures img, .pictures .none { width: 100%; height: 6.6rem; object-fit: contain; background: var(--ground);
  border-radius: 4px } .pictures .none { display: grid; place-items: center; color: var(--soft) }
.pictures figcaption { font-size: .78rem; overflow-wrap: anywhere; line-height: 1.3 }
@media print { :root { --ground: #fff; --card: #fff; --ink: #000;
  --soft: #444; --rule: #bbb; --first: #1769aa;
  --second: #c2571a; --warn: #fff } body { padding: 0; max-width: none; font-size: 11pt }
  section { break-inside: avoid; border-radius: 0 } }
"""

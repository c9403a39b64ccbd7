# SPDX-License-Identifier: MIT
"""The chart: how many times native time each workload takes, logarithmic, as an SVG file."""

import math

COLOURS = {"tcg": "#c0504d", "softkvm": "#2e75b6", "interp": "#9a9a9a"}
NAMES = {"tcg": "QEMU TCG", "softkvm": "SoftKVM", "interp": "SoftKVM, interpreter"}
LEFT, RIGHT, BAR, GAP, TOP = 150, 70, 8, 8, 60


def slowdowns(row, engines):
    s = row["seconds"]
    return {e: s[e] / s["native"] for e in engines if s.get(e) and s.get("native")}


def write(path, rows, groups, width=900):
    engines = [e for e in COLOURS if any(r["seconds"].get(e) for r in rows)]
    rows = [(r, slowdowns(r, engines)) for r in rows if slowdowns(r, engines)]
    if not rows:
        return
    top = max(max(v.values()) for _, v in rows)
    low = min(0.5, min(min(v.values()) for _, v in rows))
    span = math.log(top * 1.1 / low)
    out, y, group = [], TOP, None

    def x(v):
        return LEFT + (width - LEFT - RIGHT) * math.log(max(v, low) / low) / span

    def text(at_x, at_y, words, anchor="start", weight="normal", colour="#222"):
        out.append('<text x="%.1f" y="%.1f" text-anchor="%s" font-weight="%s" fill="%s">%s</text>' %
                   (at_x, at_y, anchor, weight, colour, words))

    for r, values in rows:
        if r["group"] != group:
            group = r["group"]
            y += 14
            text(10, y, groups[group], weight="bold")
            y += 10
        text(LEFT - 8, y + BAR * len(engines) / 2 + 4, r["name"], "end")
        for e in engines:
            if e in values:
                begin, end = sorted((x(1), x(values[e])))
                out.append('<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>' %
                           (begin, y, max(1, end - begin), BAR, COLOURS[e]))
                text(end + 4, y + BAR - 0.5, "%.2f" % values[e], colour=COLOURS[e])
            y += BAR
        y += GAP
    grid = ['<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/>'
            '<text x="%.1f" y="%d" text-anchor="middle" fill="#666">%gx</text>' %
            (x(v), TOP, x(v), y, "#444" if v == 1 else "#ddd", x(v), TOP - 6, v)
            for v in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= v <= top * 1.1]
    text(10, 18, "Time in a guest, relative to the same program on the host (logarithmic; shorter is better)", weight="bold")
    for i, e in enumerate(engines):
        out.append('<rect x="%d" y="26" width="12" height="10" fill="%s"/>' % (10 + 160 * i, COLOURS[e]))
        text(26 + 160 * i, 35, NAMES[e])
    with open(path, "w", encoding="utf-8") as f:
        f.write('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="10">\n'
                '<rect width="100%%" height="100%%" fill="white"/>\n' % (width, y + 20))
        f.write("\n".join(grid + out) + "\n</svg>\n")

"""What was measured, as a Markdown table and as a picture."""

import os
import platform
import subprocess
import time
from pathlib import Path
from xml.sax.saxutils import escape

from .compare import OURS, OURS_DIGESTS, PEER, PLACES, Cell, Results, Side
from .jobs import JOBS

TOP = Path(__file__).parents[2]


def machine() -> str:
    """Return the machine, the versions and the date, as a few lines of Markdown."""
    described = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in described if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"iscsifs {_output('git', '-C', str(TOP), 'describe', '--always', '--dirty')}"]
    versions += [f"{name} {_version(name)}" for name in ("tgt", "istgt", "qemu-utils", "fio", "libfuse3-3")]
    return (
        f"- {time.strftime('%Y-%m-%d')}, {os.cpu_count()} x {cpu}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, {_output(str(TOP / '.venv/bin/python'), '--version')}\n"
        f"- {', '.join(versions)}"
    )


def table(results: Results, sides: list[Side]) -> str:
    """Return the medians and the ratios in Markdown, a table for each place."""
    lines = []
    for place in PLACES:
        lines += ["", f"**{place}**", ""]
        lines.append("| fio job | " + " | ".join(sides) + " | ratio |")
        lines.append("|---|" + "---:|" * (len(sides) + 1))
        for job in JOBS:
            cells = results[place, job]
            texts = [_text(cells[side], job.unit) if side in cells else "" for side in sides]
            lines.append(f"| {job.name} | " + " | ".join(texts) + f" | {_ratio(cells)} |")
    return "\n".join(lines)


def picture(results: Results, sides: list[Side]) -> str:
    """Return an SVG with a bar for each figure, relative to the faster of each row."""
    colours = {PEER: "#9aa5b1", OURS: "#2f6fde", OURS_DIGESTS: "#7fb0ff"}
    bar, left, width = 11, 300, 420
    parts: list[str] = []
    y = 30
    for side, x in zip(sides, range(left, 2000, 140), strict=False):
        parts.append(f'<rect x="{x}" y="8" width="11" height="11" fill="{colours[side]}"/>')
        parts.append(f'<text x="{x + 16}" y="18">{escape(side)}</text>')
    for place in PLACES:
        y += 24
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{escape(str(place))}</text>')
        y += 8
        for job in JOBS:
            cells = results[place, job]
            rates = {side: cell.rate for side in sides if (cell := cells.get(side)) and cell.rate}
            longest = max(rates.values(), default=1.0)
            parts.append(f'<text x="24" y="{y + bar}">{escape(job.name)}</text>')
            for side, rate in rates.items():
                length = rate / longest * width
                wrong = " wrong data" if cells[side].wrong_blocks else ""
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar}" fill="{colours[side]}"/>'
                )
                parts.append(
                    f'<text x="{left + length + 5:.0f}" y="{y + bar - 1}">{rate:.2f} {job.unit}{wrong}</text>'
                )
                y += bar + 2
            y += 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 150}" height="{y + 10}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _text(cell: Cell, unit: str) -> str:
    if cell.rate is None:
        return f"failed: {cell.failure}"
    text = f"{cell.rate:.2f} {unit}"
    if cell.wrong_blocks:
        text += f" **wrong: {cell.wrong_blocks} blocks**"
    return text + (f" (once failed: {cell.failure})" if cell.failure else "")


def _ratio(cells: dict[Side, Cell]) -> str:
    ours, theirs = (cells[side].rate if side in cells else None for side in (OURS, PEER))
    return f"{ours / theirs:.2f}" if ours and theirs else ""


def _version(package: str) -> str:
    return _output("dpkg-query", "-W", "-f", "${Version}", package)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"

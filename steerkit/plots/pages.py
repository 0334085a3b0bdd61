"""Pictures from results; no model. Every page is one file that needs nothing else."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import OutputError
from steerkit.files import write_text
from steerkit.thinking import folded
from steerkit.tints import tint, tinted

if TYPE_CHECKING:
    from steerkit.chats import Chat, Said

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.6 system-ui, sans-serif; margin: 2.5rem auto; max-width: 78rem; padding: 0 1.5rem;
       background: #fafaf8; color: #1c1c1a; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .2rem; }
.about, footer { color: #6b6b66; font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }
.reply { background: #fff; border: 1px solid #e4e3de; border-radius: .6rem; padding: 1rem 1.1rem; }
.reply h2 { font: 600 .95rem ui-monospace, monospace; margin: 0 0 .1rem; }
.scores { color: #6b6b66; font-size: .8rem; margin: 0 0 .6rem; }
.reply p.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.reply span { border-radius: .2rem; }
.chat { max-width: 46rem; margin: 1.5rem auto; }
.turn { display: grid; grid-template-columns: 3.2rem 1fr; gap: 0 .8rem; margin: 0 0 1.1rem; }
.turn > b { font-size: .85rem; color: #6b6b66; padding-top: .15rem; }
.turn p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.turn .beside { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; }
.thought { color: #6b6b66; font-size: .85rem; font-style: italic; }
.turn span { border-radius: .2rem; }
.key span { padding: .1rem .45rem; border-radius: .2rem; }
@media (prefers-color-scheme: dark) {
  body { background: #161614; color: #e8e7e2; } .reply { background: #1f1f1c; border-color: #34342f; }
  .about, .scores, footer, .turn > b, .thought { color: #9a9992; }
}
"""


def save_picture(result: Mapping[str, Any], path: Path) -> None:
    """Write `generate --compare`'s result as a page (.html) or a drawing (.svg).

    Raises:
        OutputError: another ending, or a place that cannot be written.
    """
    write_text(path, drawer(path)(result))


def drawer(path: Path) -> Callable[[Mapping[str, Any]], str]:
    """What draws this kind of file.

    Raises:
        OutputError: nothing does.
    """
    drawers = {".html": replies_html, ".svg": replies_svg}
    if path.suffix not in drawers:
        raise OutputError(f"cannot draw a {path.suffix or 'nameless'} file; end -o in .html or .svg")
    return drawers[path.suffix]


def replies_html(result: Mapping[str, Any]) -> str:
    """The replies side by side, every word on the colour of its score; hovering shows the numbers."""
    cards = "\n".join(_card(reply) for reply in result["replies"])
    about = f"{result['model']}, one prompt under {len(result['replies'])} steerings"
    return _page(f"“{result['prompt']}”", about, f'<div class="grid">\n{cards}\n</div>')


def chat_html(chat: Chat, probe: str = "") -> str:
    """A chat as one page, every word of a reply on the colour of its score on a probe; hovering shows them all."""
    turns = "\n".join(_turn(said, probe) for said in chat.said)
    first = next((said.content for said in chat.said if said.role == "user"), "")
    about = f"A chat with {chat.model}" + (f", its words coloured by their score on {probe}" if probe else "")
    return _page(f"“{first}”", about, f'<div class="chat">\n{turns}\n</div>')


def _page(title: str, about: str, content: str) -> str:
    """One file that needs nothing else."""
    key = "".join(_span(f" {x:+.1f} ", {"": x}) for x in (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<div class="about">{html.escape(about)}</div>
{content}
<footer><p class="key">score of each word: {key} · 0 is the assistant, 1 the persona asked for outright.</p>
<p>Made with steerkit.</p></footer>
</body></html>
"""


def _turn(said: Said, probe: str) -> str:
    if said.unsteered is not None:
        sides = "".join(f"<div>{_side(side, probe)}</div>" for side in (said.unsteered, said))
        return f'<div class="turn"><b>{said.role}</b><div class="beside">{sides}</div></div>'
    return f'<div class="turn"><b>{said.role}</b><div>{_side(said, probe)}</div></div>'


def _side(said: Said, probe: str) -> str:
    """What was said, with a mark where the steering changed and a line about it; what was thought is folded."""
    thought = _folded(said.thought)
    if not said.tokens:
        return f"{thought}<p>{html.escape(said.content)}</p>"
    names = sorted(said.probes, key=lambda name: name != probe)
    changes = {place: text for place, text in said.steer if place}
    words = ""
    for i, (token, row) in enumerate(zip(said.tokens, said.scores, strict=True)):
        scores = dict(zip(said.probes, row, strict=True))
        words += f'<b title="{html.escape(changes[i], quote=True)}">▸</b>' if i in changes else ""
        words += _span(token.lstrip() if not i else token, {name: scores[name] for name in names})
    steer = " ▸ ".join(text or "unsteered" for _, text in said.steer)
    about = html.escape(steer) + (f" · {html.escape(probe)} {said.means[probe]:+.2f}" if probe in said.means else "")
    return f'{thought}<p>{words}</p><p class="scores">{about}</p>'


def _folded(thought: str) -> str:
    """A thought, of which a click shows more than its length."""
    if not thought:
        return ""
    head = folded(len(thought.split()), "words").removeprefix("▸ ")
    return f'<details class="thought"><summary>{head}</summary><p>{html.escape(thought)}</p></details>'


def _card(reply: Mapping[str, Any]) -> str:
    words = "".join(_span(token["text"], token["scores"]) for token in reply["tokens"])
    scores = " · ".join(f"{html.escape(name)} {score:+.2f}" for name, score in reply["scores"].items())
    title = html.escape(reply["steer"]) or "unsteered"
    thought = _folded(str(reply.get("thought", "")))
    head = f'<h2>{title}</h2><p class="scores">{scores}</p>'
    return f'<div class="reply">{head}{thought}<p class="text">{words}</p></div>'


def _span(text: str, scores: Mapping[str, float]) -> str:
    shown = html.escape(text)
    if not scores:
        return shown
    background, ink = tint(next(iter(scores.values())))
    title = html.escape(", ".join(f"{name} {score:+.2f}".strip() for name, score in scores.items()), quote=True)
    style = f' style="background:{background};color:{ink}"' if background else ""
    return f'<span title="{title}"{style}>{shown}</span>'


def replies_svg(result: Mapping[str, Any]) -> str:
    """The same as a drawing of a terminal."""
    from rich.console import Console

    console = Console(record=True, width=112, file=io.StringIO(), highlight=False)
    console.print(replies_table(result["prompt"], result["replies"]))
    drawing = console.export_svg(title=f"steerkit · {result['model']}")
    # A drawing that fetches its font is not one file that needs nothing else, and XML has no control characters.
    alone = re.sub(r"@font-face\s*\{.*?\}", "", drawing, flags=re.DOTALL)
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", alone)


def replies_table(prompt: str, replies: Sequence[Mapping[str, Any]]) -> Any:
    """Replies side by side for a terminal, words tinted by their score on the first probe."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        expand=True,
        title=Text(f"“{prompt}”", "italic"),
        title_justify="left",
    )
    for reply in replies:
        mean = next(iter(reply["scores"].values()), None)
        heading = Text(reply["steer"] or "unsteered", "bold")
        if mean is not None:
            heading.append(f"\nscores {mean:+.2f}", "dim")
        table.add_column(heading, ratio=1, overflow="fold")
    if any(reply.get("n_thought") for reply in replies):
        table.add_row(*(Text(folded(n) if (n := reply.get("n_thought", 0)) else "", "dim italic") for reply in replies))
    firsts = [[next(iter(token["scores"].values()), 0.0) for token in reply["tokens"]] for reply in replies]
    words = [[token["text"] for token in reply["tokens"]] for reply in replies]
    table.add_row(*(tinted(*columns) for columns in zip(words, firsts, strict=True)))
    return table

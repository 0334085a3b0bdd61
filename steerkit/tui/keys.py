"""Every key and every command of the chat, and what help says of them."""

from __future__ import annotations

from textual.binding import Binding, BindingType

from steerkit.tui.dials import COARSE

BINDINGS: list[BindingType] = [
    Binding("escape", "stop", "stop", show=True),
    Binding("f1,question_mark", "help", "help", key_display="F1"),
    Binding("f2,c", "compare", "compare", key_display="F2"),
    Binding("f3,f", "floor", "floor", key_display="F3"),
    Binding("f4,a", "add", "dial", key_display="F4"),
    Binding("f5,r", "again", "again", key_display="F5"),
    Binding("f6,p", "probe", "probe", key_display="F6"),
    Binding("f7", "plain", "plain", show=False),
    Binding("f8", "light", "light", show=False),
    Binding("f9,t", "thoughts", "thoughts", show=False),
    Binding("ctrl+s", "save", "save", show=False, priority=True),
    Binding("ctrl+o", "load", "load", show=False, priority=True),
    Binding("ctrl+n", "new", "new", show=False, priority=True),
    Binding("ctrl+y", "copy", "copy", show=False, priority=True),
    Binding("ctrl+up", f"nudge({COARSE})", "turn", show=False, priority=True),
    Binding("ctrl+down", f"nudge(-{COARSE})", "turn", show=False, priority=True),
    Binding("ctrl+c", "interrupt", "stop or leave", show=False, priority=True),
]
"""Keys that work anywhere."""

KEYS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "anywhere",
        (
            ("enter", "send what you have written"),
            ("esc", "stop a reply at once"),
            ("tab", "go between the message, the dials and the chat"),
            ("ctrl+↑ ctrl+↓", "turn the chosen dial, also while you write"),
            ("F2", "compare: the unsteered reply beside the steered one"),
            ("F3", "floor: hold the model at the Assistant, or let it go"),
            ("F4", "add a dial from the library"),
            ("F5", "say the chosen reply again, or the last one"),
            ("F6", "tint words by the next probe"),
            ("F7", "no tints: underlined above +0.5, slanted below −0.5"),
            ("F8", "light or dark"),
            ("F9", "show what was thought before replies, or fold it"),
            ("ctrl+s", "save as .jsonl, .md or .html"),
            ("ctrl+o", "load a chat"),
            ("ctrl+n", "begin a new chat"),
            ("ctrl+y", "copy the steering; in the palette also as a command"),
            ("ctrl+p", "every command by its name"),
            ("ctrl+q", "leave; the chat is kept"),
        ),
    ),
    (
        "on a dial",
        (
            ("← →", "turn it; with shift finely; or use the mouse and its wheel"),
            ("0", "reset"),
            ("m s", "mute it, or only this one"),
            ("o", "the next operator: add rotate set ablate cap floor"),
            ("l", "the layers where it works"),
            ("x", "remove it"),
        ),
    ),
    (
        "in the chat",
        (
            ("↑ ↓", "choose a turn"),
            ("r", "say that reply again; what came after it goes"),
            ("end", "choose none"),
        ),
    ),
)
"""What help shows: where keys work, and what they do."""

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("Add a dial", "Choose a persona from the library", "add"),
    ("Compare", "The unsteered reply beside the steered one", "compare"),
    ("Floor", "Hold the model at the Assistant", "floor"),
    ("Again", "Say the last reply again", "again"),
    ("Save", "As .jsonl, .md or .html", "save"),
    ("Load", "Go on with a chat that was saved", "load"),
    ("New chat", "What was said is kept in its file", "new"),
    ("Copy the steering", "As an expression", "copy"),
    ("Copy as a command", "For steerkit generate", "copy(True)"),
    ("Plain", "Words without tints", "plain"),
    ("Thoughts", "Show what was thought before replies, or fold it", "thoughts"),
)
"""What the palette offers: its name, what it does, and the action."""

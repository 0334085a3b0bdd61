"""A reply while it is being made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from steerkit.chats import Said
from steerkit.tui import speaker as say


@dataclass
class Live:
    """A reply while it is being made."""

    probes: tuple[str, ...]
    compare: bool
    replaces: tuple[Said, ...] = ()
    """What stood where it will stand, to go back to if nothing comes."""
    first: float = 0.0
    """When its first token came, by the speaker's clock."""
    last: float = 0.0
    """When its latest token came."""
    heard: list[say.Heard] = field(default_factory=list)
    beside: list[say.Heard] = field(default_factory=list)
    steer: list[tuple[int, str]] = field(default_factory=list)

    def said(self) -> Said:
        """The reply as far as it is."""
        said = _said(self.heard, self.probes, tuple(self.steer))
        return replace(said, unsteered=_said(self.beside, self.probes, ((0, ""),))) if self.compare else said

    @property
    def speed(self) -> float:
        """Tokens a second since the first one."""
        return (len(self.heard) - 1) / max(self.last - self.first, 1e-6)

    @property
    def unfinished(self) -> bool:
        """Whether the reply is within its thought."""
        return bool(self.heard) and self.heard[-1].open


def _said(heard: list[say.Heard], probes: tuple[str, ...], steer: tuple[tuple[int, str], ...]) -> Said:
    """A reply and its thought; where the steering changed is counted in tokens of the reply, as its scores are."""
    reply, thought = ([token for token in heard if token.thought is which] for which in (False, True))
    text = "".join(token.text for token in reply).strip()
    tokens, scores = tuple(token.text for token in reply), tuple(token.scores for token in reply)
    places = {max(place - len(thought), 0): expression for place, expression in steer}
    said = Said("assistant", text, tuple(places.items()), probes, tokens, scores)
    return replace(said, thought="".join(token.text for token in thought).strip())

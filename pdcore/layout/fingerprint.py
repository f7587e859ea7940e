"""What a cache was made by: named facts that the caller gives, compared by name when two ranks pair.

Two models of equal shape have caches of equal layout, and bytes of one make no sense to the other. Only who
loads the model knows which one it is: its name, revision, cache format, quantisation, RoPE settings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

import attrs

from pdcore.checks.names import repeated
from pdcore.checks.scalars import shown
from pdcore.errors import LayoutError, Misfit

__all__ = ["Fingerprint", "fingerprint_misfits", "model_fingerprint", "to_fingerprint"]

MOST_NAMES = 64
MOST_CHARACTERS = 256
"""Of a value; a name has at most a quarter of that."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
NOT_GIVEN = "not given"
CACHE_FACTS = """
architectures vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
kv_lora_rank qk_rope_head_dim rope_theta rope_scaling rope_parameters sliding_window
"""
"""What of a model's configuration the content of its cache depends on, by Hugging Face's names. Not all of
it: engines note in it what one side alone has (expert parallelism, drafts)."""

Pairs = tuple[tuple[str, str], ...]


def _sorted(given: Mapping[str, str] | Iterable[tuple[str, str]]) -> Pairs:
    try:
        pairs = given.items() if isinstance(given, Mapping) else given
        return tuple(sorted((name, value) for name, value in pairs))
    except (TypeError, ValueError) as error:
        raise LayoutError(
            "a fingerprint is no mapping of names to text",
            shown(given),
            'hand in a mapping such as {"model": "llama-3-8b", "revision": "main"}',
        ) from error


@attrs.frozen
class Fingerprint:
    """An immutable mapping of names to text, made of one: ``Fingerprint({"model": "llama-3-8b"})``.

    Names are the caller's, alike on both sides; customary are ``model``, ``revision``, ``cache_format``,
    ``quantisation`` and ``rope``. At most 64 names of up to 64 letters, digits, ``_``, ``.`` and ``-``;
    values are printable text of 1 to 256 characters.

    Raises:
        LayoutError: a name or a value is something else, or there are too many.
    """

    fields: Pairs = attrs.field(converter=_sorted)

    def __attrs_post_init__(self) -> None:
        names = [name for name, _ in self.fields]
        wrong = [
            *([f"{len(names)} names"] if len(names) > MOST_NAMES else []),
            *(f"the name {shown(n)}" for n in names if not _is_name(n)),
            *(f"{n} twice" for n in repeated(names)),
            *(f"{n}={shown(v)}" for n, v in self.fields if not _is_text(v)),
        ]
        if wrong:
            raise LayoutError(
                "a fingerprint cannot be made of this",
                ", ".join(wrong[:4]),
                f"give up to {MOST_NAMES} names of letters, digits, '_', '.' and '-' (64 at most), each with "
                f"a text of 1 to {MOST_CHARACTERS} printable characters; write numbers as text",
            )

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.fields) or "nothing"


def to_fingerprint(given: Fingerprint | Mapping[str, str] | None) -> Fingerprint | None:
    """Return the fingerprint of a mapping; None if it names nothing.

    Raises:
        LayoutError: none can be made of it.
    """
    if isinstance(given, Fingerprint) or given is None:
        return given
    made = Fingerprint(given)
    return made if made.fields else None


def model_fingerprint(path: str, config: object, **facts: object) -> Fingerprint:
    """Return what tells caches of two models apart, of what an engine knows of the one that it serves.

    ``path`` is its name or where it lies, of which the last part counts: the sides may keep it in two places.
    ``config`` has Hugging Face's names as attributes. ``facts`` are what else matters: the revision, the
    quantisation, the cache's format. What is None or empty is left out.
    """
    given: dict[str, object] = {"model": path.rstrip("/").rpartition("/")[2]}
    given |= {name: getattr(config, name, None) for name in CACHE_FACTS.split()} | facts
    return Fingerprint({name: _text(fact) for name, fact in given.items() if fact})


def fingerprint_misfits(prefill: Fingerprint | None, decode: Fingerprint | None) -> list[Misfit]:
    """Return every name of which two fingerprints say different things, or only one says something.

    Without two fingerprints nothing can be compared, and nothing is refused.
    """
    if prefill is None or decode is None:
        return []
    ours, theirs = dict(prefill.fields), dict(decode.fields)
    return [
        Misfit(f"fingerprint.{name}", _value(ours, name), _value(theirs, name), _change(name, ours, theirs))
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def _value(fields: Mapping[str, str], name: str) -> str:
    return repr(fields[name]) if name in fields else NOT_GIVEN


def _change(name: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    if name in ours and name in theirs:
        return "serve one model, in one revision and with the same cache settings, on both sides"
    return "name the same facts in the fingerprints of both sides"


def _text(fact: object) -> str:
    """Return a fact as the value of a fingerprint; what is too long for one ends with a digest of it all."""
    text = "".join(c if c.isprintable() else " " for c in str(fact))
    if len(text) <= MOST_CHARACTERS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: MOST_CHARACTERS - len(digest) - 1]}#{digest}"


def _is_name(name: object) -> bool:
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_CHARACTERS and value.isprintable()

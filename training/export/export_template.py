"""The chat template of an export: without the markers that only training reads."""

from __future__ import annotations

import re

# A comment or a raw block is matched first and kept, so that a marker which it only quotes stays.
MARKER = re.compile(
    r"\{#.*?#\}|\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}"
    r"|\{%(?P<left>[-+]?)\s*(?P<tag>(?:end)?generation)\s*(?P<right>[-+]?)%\}",
    re.DOTALL,
)
SETS = re.compile(r"\{%[-+]?\s*set\s")


def plain_template(text: str) -> str:
    """Return a chat template without `{% generation %}` markers; it renders the same text in plain Jinja.

    Only transformers reads the markers; other programs fail on them. Each becomes an empty comment with the same
    whitespace control, since Jinja trims around comments as it does around tags. The markers are also a scope: a
    variable set between them is undefined after them. Templates that set one get `{% with %}`, which is a scope too.
    """
    inside = re.findall(r"generation\s*[-+]?%\}(.*?)\{%[-+]?\s*endgeneration", text, re.DOTALL)
    keeps_scope = any(SETS.search(body) for body in inside)

    def replaced(match: re.Match[str]) -> str:
        tag, left, right = match["tag"], match["left"], match["right"]
        if tag is None:
            return match[0]
        if keeps_scope:
            return f"{{%{left} {'with' if tag == 'generation' else 'endwith'} {right}%}}"
        return f"{{#{left} {right}#}}"

    return MARKER.sub(replaced, text)

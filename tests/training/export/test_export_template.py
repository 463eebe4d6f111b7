"""The template of an export renders in plain Jinja what the template of the training rendered in transformers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.encode.conversations import TEMPLATES
from training.export.export_template import plain_template

MESSAGES = [{"role": role, "content": f" {role} says\n"} for role in ("system", "user", "assistant", "user")]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
signs = st.sampled_from(["", "-", "+"])
gaps = st.sampled_from(["", " ", "\n", "\n  ", "  \n", "x", " x\n", "{{ m.content }}", "\n\n   {{- m.role }}\n"])
bodies = st.sampled_from(["{{ m.content }}", " {{- m.content -}}\n", "{% set a = 'in' %}{{ a }}\n", "{# no #}", "\n"])


def in_transformers(template: str, *, ask: bool) -> str:
    texts, _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=ask, **TOKENS)
    return str(texts[0])


def in_plain_jinja(template: str, *, ask: bool) -> str:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return plain.from_string(template).render(messages=MESSAGES, add_generation_prompt=ask, **TOKENS)


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_our_templates_render_the_same_without_their_markers(name: str, ask: bool) -> None:
    template = TEMPLATES[name].read_text()
    assert "generation %}" in template and "generation %}" not in plain_template(template)
    assert in_plain_jinja(plain_template(template), ask=ask) == in_transformers(template, ask=ask)


@settings(deadline=None, max_examples=150)
@given(st.tuples(signs, signs, signs, signs), st.tuples(gaps, gaps, gaps, gaps), bodies)
def test_any_control_of_whitespace_stays(
    sign: tuple[str, str, str, str], gap: tuple[str, str, str, str], body: str
) -> None:
    begin, end = f"{{%{sign[0]} generation {sign[1]}%}}", f"{{%{sign[2]} endgeneration {sign[3]}%}}"
    said = gap[0] + begin + gap[1] + body + gap[2] + end + gap[3]
    template = f"{{% set a = 'out' %}}{{% for m in messages %}}{said}{{{{ a }}}}{{% endfor %}}\n"
    assert in_plain_jinja(plain_template(template), ask=False) == in_transformers(template, ask=False)


def test_a_template_without_markers_and_what_only_quotes_one_stay_as_they_are() -> None:
    quoted = "{# {% generation %} #}{% raw %}{% endgeneration %}{% endraw %}{{ messages[0].content }}"
    assert plain_template(quoted) == quoted

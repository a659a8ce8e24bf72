"""Chat templates composed of features of real ones: headers, ends of turns, thoughts, trimming, tool calls, tags."""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

IM_END = "<|im_end|>"


@dataclass(frozen=True)
class Style:
    """The ways of one template."""

    opening: str = "im"
    """``im``: one token opens each turn, the role follows; ``role``: each role has a token of its own."""
    ending: str = "each"
    """``each`` message ends alike; ``next``: the next message writes an answer's end; ``last``: the last answer has
    another; ``header``: the next question's header stands after the last answer; ``answer``: an answer's header
    stands at the end of every chat; ``chat``: the chat has an end token too; ``none``: no token ends an answer."""
    thought: str = ""
    """``each`` answer has an empty one, or the ``last``."""
    prompt: str = ""
    """What the generation prompt begins of an answer."""
    trims: bool = False
    calls: bool = True
    """It knows tool calls."""
    tag: str = ""
    """``turn``, ``parts`` (two of them side by side) or ``words``: what is enclosed in ``{% generation %}``."""
    system: bool = False
    """It writes a system message of its own."""
    indented: bool = False
    """It is a file of indented lines that nobody stripped."""

    def end(self, *, last: bool) -> str:
        """The token after an answer, as the template writes it."""
        if self.ending == "none" or (self.ending == "next" and last):
            return ""
        if last and (self.ending == "last" or (self.ending == "chat" and not self.tag)):
            return "</s>"
        return "<|end|>" if self.ending == "last" else IM_END

    def template(self) -> str:
        opened = "'<|im_start|>' + {} + '\n'" if self.opening == "im" else "'<|' + {} + '|>\n'"
        words = "m['content'] | trim" if self.trims else "m['content']"
        call = "{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}"
        calls = "{% for call in m.tool_calls or [] %}" + call + "{% endfor %}"
        thought = {"": "", "each": "{{ '<think></think>' }}", "last": _if("loop.last", "'<think>\n\n</think>\n\n'")}
        end = {
            "next": "",
            "none": "{{ '\n\n' }}",
            "last": "{{ '</s>' if loop.last and not add_generation_prompt else '<|end|>' }}",
        }.get(self.ending, "{{ '<|im_end|>' }}")
        body = "{{ " + words + " }}" + calls * self.calls
        on, off = "{% generation %}", "{% endgeneration %}"
        answer = {
            "": thought[self.thought] + body + end,
            "turn": on + thought[self.thought] + body + end + off,
            "parts": on + thought[self.thought] + body + off + on + end + off,
            "words": thought[self.thought] + on + body + off + end,
        }[self.tag]
        gap = "" if self.ending in ("next", "none") else "{{ '\n' }}"
        pieces = ["{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}"] if self.system else []
        pieces.append("{% for m in messages %}")
        if self.ending == "next":
            pieces.append(_if("loop.index0 and messages[loop.index0 - 1]['role'] == 'assistant'", "'<|im_end|>'"))
        pieces += ["{{ " + opened.format("m['role']") + " }}", "{% if m['role'] == 'assistant' %}", answer]
        pieces += ["{% else %}", "{{ " + words + " }}", "{{ '<|end|>' }}", "{% endif %}", gap]
        if self.ending == "header":
            pieces.append(
                _if("loop.last and m['role'] == 'assistant' and not add_generation_prompt", opened.format("'user'"))
            )
        pieces.append("{% endfor %}")
        if self.ending == "chat":
            pieces.append(_if("not add_generation_prompt", "eos_token"))
        when = "true" if self.ending == "answer" else "add_generation_prompt"
        pieces.append(_if(when, opened.format("'assistant'") + f" + {self.prompt!r}"))
        return "\n    ".join(["", *pieces, ""]) if self.indented else "".join(pieces)


def _if(condition: str, value: str) -> str:
    return "{% if " + condition + " %}{{ " + value + " }}{% endif %}"


STYLES = st.builds(
    Style,
    opening=st.sampled_from(["im", "role"]),
    ending=st.sampled_from(["each", "next", "last", "header", "answer", "chat", "none"]),
    thought=st.sampled_from(["", "each", "last"]),
    prompt=st.sampled_from(["", "<think>\n", "<think>"]),
    trims=st.booleans(),
    calls=st.booleans(),
    tag=st.sampled_from(["", "", "turn", "parts", "words"]),
    system=st.booleans(),
    indented=st.booleans(),
).filter(
    lambda style: (
        not (style.tag == "words" and style.ending not in ("each", "header", "answer"))
        and not (style.indented and style.ending in ("header", "answer"))
    )
)

ROUND = st.sampled_from(
    [("user", "assistant"), ("user", "call", "tool", "assistant"), ("user", "words and call", "tool")]
)


@st.composite
def dialogues(draw: st.DrawFn) -> list[str]:
    """Who speaks in a dialogue."""
    roles = ["system"] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        roles += draw(ROUND)
    return [*roles, "user"] if draw(st.booleans()) else roles


def in_letters(roles: list[str]) -> list[dict[str, Any]]:
    """A dialogue in which each message has letters of its own, which nobody else uses, and each call its name."""
    chat: list[dict[str, Any]] = []
    for n, role in enumerate(roles):
        letters = "".join(chr(0xE000 + 16 * n + k) for k in range(5))
        message = {"role": "assistant" if "call" in role else role, "content": "" if role == "call" else letters}
        if "call" in role:
            call = {"name": f"name{n}", "arguments": {"value": n}}
            message["tool_calls"] = [{"type": "function", "function": call}]
        chat.append(message)
    return chat


def speaker(letter: str) -> int | None:
    """The number of the message that a letter is of; None for a letter of the template."""
    return (ord(letter) - 0xE000) // 16 if 0xE000 <= ord(letter) < 0xE800 else None

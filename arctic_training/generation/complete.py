"""Completes texts and chats with a model that is not trained."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from arctic_training.generation.chat import end_token_ids
from arctic_training.generation.config import GenerationKeys
from arctic_training.generation.generate import generate
from arctic_training.generation.prompts import Message, encode_prompt, is_encoder_decoder
from arctic_training.generation.sampling import seeded_uniforms
from arctic_training.generation.streaming import text_streamer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def complete(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str | list[Message]],
    keys: GenerationKeys,
    *,
    batch_size: int = 8,
    raw: bool = False,
    write: Callable[[str], object] | None = None,
) -> list[dict[str, object]]:
    """Returns a row for each prompt: ``prompt`` or ``messages``, ``completion``, and whether it ``finished``.

    A text is the message of a user where the tokenizer has a chat template, unless ``raw``. A prompt has the same
    completion whatever the others are. The completion of a single prompt is passed on to ``write`` as it is generated.
    Raises `InputError` for a chat that the template refuses.
    """
    uses_template = bool(tokenizer.chat_template) and not raw
    chats = [[{"role": "user", "content": one}] if isinstance(one, str) and uses_template else one for one in prompts]
    ids = [encode_prompt(tokenizer, one, "prompt", keeps_end=is_encoder_decoder(model)) for one in chats]
    has_chats = any(not isinstance(one, str) for one in chats)
    streams = write is not None and len(ids) == 1 and keys.num_beams == 1
    completions = generate(
        model,
        ids,
        keys.sampling_params,
        tokenizer=tokenizer,
        eos_token_ids=end_token_ids(tokenizer, model) if has_chats else None,
        uniforms=seeded_uniforms([0] * len(ids), keys.max_new_tokens, keys.seed),
        batch_size=batch_size,
        streamer=text_streamer(tokenizer, write, keys.stop) if streams and write is not None else None,
    )
    texts = completions.texts(tokenizer)
    if write is not None and not streams:
        write("\n".join(texts))
    return [
        {"prompt" if isinstance(one, str) else "messages": one, "completion": text, "finished": finished}
        for one, text, finished in zip(prompts, texts, completions.finished, strict=True)
    ]

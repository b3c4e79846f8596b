"""Tokens that end an output: of the generation configuration, of the tokenizer, and of turns in the chat template."""

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_WORD = "pbkvturn"  # an answer that no template contains


def end_tokens(generation: Any, vocabulary: int, directory: Path, chat_template: str = "") -> frozenset[int]:
    """Ids of the tokens after which an output is complete.

    Args:
        generation: the model's generation configuration, as `transformers` has it.
        vocabulary: number of the model's tokens.
        directory: of its checkpoint; it may be without a tokenizer.
        chat_template: name of one of its chat templates; empty: its default.
    """
    ids = generation.eos_token_id
    ends = set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        ends |= _tokenizer_ends(directory, chat_template)
    return frozenset(end for end in ends if 0 <= end < vocabulary)


def _tokenizer_ends(directory: Path, chat_template: str) -> set[int]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # noqa: BLE001 - who loads it to read text says what is wrong with it
        log.warning("the tokenizer's end of sequence is unknown: %s", error)
        return set()
    ends = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    templates = tokenizer.chat_template
    source = templates.get(chat_template or "default") if isinstance(templates, dict) else templates
    return ends | (_turn_end(tokenizer, source) if source else set())


def _turn_end(tokenizer: Any, source: str) -> set[int]:
    """The special token that a chat template puts directly after an answer, if there is one."""
    for content in (str, lambda text: [{"type": "text", "text": text}]):
        answered = [{"role": "user", "content": content("?")}, {"role": "assistant", "content": content(_WORD)}]
        try:
            text: str = tokenizer.apply_chat_template(answered, chat_template=source, tokenize=False)
        except Exception as error:  # noqa: BLE001 - templates are programs of others; one that fails tells nothing
            log.info("the chat template does not tell how a turn ends: %s", error)
            continue
        ids = tokenizer.encode(text.rpartition(_WORD)[2].lstrip(), add_special_tokens=False) if _WORD in text else []
        if ids and ids[0] in tokenizer.all_special_ids:
            return {ids[0]}
    return set()

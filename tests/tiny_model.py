"""A tiny random Llama with its own tokenizer, made in the test: no download, the real file formats.

The folder is what every engine and trainer loads: ``config.json``, ``generation_config.json``,
``model.safetensors``, ``tokenizer.json``, ``tokenizer_config.json``. Same arguments, same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CORPUS = (
    "turn on the light in the kitchen",
    "turn off the heater in the living room",
    "what is the weather in the office today",
    '{"name":"turn_on","arguments":{"area":"kitchen"}}',
    '{"name":"turn_off","arguments":{"area":"office"}}',
    '{"name":"weather","arguments":{"place":"bedroom"}}',
    "system\nuser\nassistant\ntool\n",
    "0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ <EMAIL_1> <PHONE_1>",
)


def make_tokenizer(folder: Path, vocabulary: int = 512) -> None:
    """Write a byte-level BPE tokenizer with ChatML's special tokens into ``folder``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))


def make_tiny_model(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
) -> Path:
    """Build and save the model (about 0.1 M parameters, float32) and its tokenizer; returns ``folder``."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    make_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.save_pretrained(folder, safe_serialization=True)
    return folder


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": name.replace("_", " "),
            "parameters": {
                "type": "object",
                "properties": {"area": {"type": "string"}},
                "required": ["area"],
            },
        },
    }
    for name in ("turn_on", "turn_off")
]
AREAS = ("kitchen", "office", "bedroom", "hall", "garage", "attic", "cellar", "porch")


def tool_examples(count: int) -> list[dict[str, object]]:
    """``count`` deterministic {"request", "answer"} pairs of a two-tool home agent."""
    examples: list[dict[str, object]] = []
    for number in range(count):
        on, area = number % 2 == 0, AREAS[(number // 2) % len(AREAS)]
        polite = ("", "please ", "now ", "quickly ")[(number // 16) % 4]
        examples.append(
            {
                "request": {
                    "model": "teacher",
                    "messages": [
                        {"role": "system", "content": "You control a home."},
                        {
                            "role": "user",
                            "content": f"{polite}turn {'on' if on else 'off'} the light in the {area}",
                        },
                    ],
                    "tools": TOOLS,
                },
                "answer": {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": f"call_{number}",
                            "type": "function",
                            "function": {
                                "name": "turn_on" if on else "turn_off",
                                "arguments": json.dumps({"area": area}),
                            },
                        }
                    ],
                },
            }
        )
    return examples

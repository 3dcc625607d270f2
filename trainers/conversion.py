"""Turn a GGUF file of the Llama family into an ordinary model folder.

Direct loading of such a file marks the model as quantized, and some releases read its tokenizer
wrongly (a wrong end token, so that training never learns to stop). So it is converted once, by the
file format's own reader: dequantized weights as safetensors, a byte-level BPE ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Field = Callable[[str], Any]

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_CONTROL_TOKEN = 3


def convert(source: Path, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` (bfloat16) and the tokenizer into ``folder``.

    Deterministic: the same file gives the same bytes.

    Raises ValueError when ``source`` is not a Llama-family file with a GPT-2 style tokenizer.
    """
    from gguf import GGUFReader

    reader = GGUFReader(str(source))

    def field(key: str) -> Any:
        return reader.fields[key].contents() if key in reader.fields else None

    kind = (field("general.architecture"), field("tokenizer.ggml.model"))
    if kind != ("llama", "gpt2"):
        raise ValueError(f"{source.name} holds {kind}, only ('llama', 'gpt2') can be converted")
    folder.mkdir(parents=True, exist_ok=True)
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    config = _config(field, tied)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    _write_weights(reader.tensors, folder / "model.safetensors", config)
    _write_tokenizer(field, folder)


def _config(field: Field, tied: bool) -> dict[str, Any]:
    hidden, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    theta = float(field("llama.rope.freq_base") or 10000.0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": float(field("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "initializer_range": 0.02,
        "dtype": "bfloat16",
    }


def _write_weights(tensors: Any, path: Path, config: dict[str, Any]) -> None:
    import numpy as np
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    state = {}
    for tensor in tensors:
        name = _name(tensor.name)
        if name is None:
            continue
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # The file stores rotary halves interleaved; transformers wants them one after another.
            heads = config[f"num_{'attention' if 'q_proj' in name else 'key_value'}_heads"]
            half = weights.shape[0] // heads // 2
            weights = (
                weights.reshape(heads, half, 2, *weights.shape[1:])
                .swapaxes(2, 1)
                .reshape(weights.shape)
            )
        state[name] = torch.from_numpy(np.ascontiguousarray(weights)).to(torch.bfloat16)
    save_file(state, str(path), metadata={"format": "pt"})
    # The library makes it private; the engine may run as another user.
    path.chmod(0o644)


def _name(source: str) -> str | None:
    if source in _TOP:
        return _TOP[source]
    if not source.startswith("blk."):
        return None
    _, layer, kind, _ = source.split(".")
    return f"model.layers.{layer}.{_LAYER[kind]}.weight"


def _write_tokenizer(field: Field, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=merges,
            unk_token=None,
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))

    def special(key: str) -> str | None:
        number = field(f"tokenizer.ggml.{key}_token_id")
        return None if number is None else tokens[number]

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special("bos"),
        "eos_token": special("eos"),
        "unk_token": special("unknown"),
        "pad_token": special("padding"),
        "add_bos_token": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": field("llama.context_length"),
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")

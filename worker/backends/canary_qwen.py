"""Canary-Qwen: a FastConformer of NeMo whose states are part of the prompt of a Qwen3 of transformers.

    pieces ── mel, encoder, projection ──▶ states ──┐
    "Transcribe the following: " ── embeddings ─────┴──▶ Qwen3 with its LoRA ──▶ text

A checkpoint is a folder as NeMo's class SALM writes it: config.json and model.safetensors. NeMo's class is not used: it
requires peft, and reads the language model's configuration from the repository that config.json names. Here, the
configuration and the tokenizer come from the folder `llm_backbone` of the checkpoint, or from the catalog's row. The
encoder's classes are vetted like those of a .nemo file, and the LoRA is added to the weights that it adapts.

The model transcribes English. It was trained on clips of up to 40 s, and has no timestamps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker.backends.base import Backend
from worker.backends.common import checkpoints, generation, memory, pretrained
from worker.backends.common.device import device_of, dtype_of, libraries
from worker.backends.common.silence import is_silent
from worker.backends.nemo import importing
from worker.backends.nemo.encoder import encode
from worker.backends.nemo.restore import without_random_values
from worker.backends.nemo.vetting import vet_modules
from worker.catalog import Model
from worker.catalog.model_config import ModelConfig
from worker.config import Settings
from worker.errors import ModelUnavailable
from worker.types import Batch, Output, Piece, Transcript

LLM = "llm_backbone"  # the folder of the language model's configuration and tokenizer, which NeMo 3 saves
BEFORE, AFTER = "<|im_start|>user\nTranscribe the following: ", "<|im_end|>\n<|im_start|>assistant\n"
LONGEST = 512  # new tokens, in 40 s of audio
_CONNECTOR = "nemo.collections.speechlm2.modules.perception.IdentityConnector"
_LORA = {"task_type", "r", "lora_alpha", "lora_dropout", "target_modules"}  # the settings of a plain LoRA
_LORA_NAMES = (".lora_A.default.weight", ".lora_B.default.weight")


class CanaryQwen(Backend):
    """A Canary-Qwen checkpoint: transcribes English speech."""

    overhead_sec = 300.0  # a batch generates its tokens in nearly the same time as a single clip

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._llm: Any = None
        self._perception: Any = None

    def weight_bytes(self) -> int:
        """Return the bytes of the weight files. Raises ModelUnavailable if there are none."""
        importing.start()
        return checkpoints.checkpoint_bytes(self._folder())

    def load(self) -> None:
        """Load the checkpoint. Raises ModelUnavailable."""
        importing.start()
        folder = self._folder()
        config = ModelConfig((folder / "config.json").read_bytes(), str(folder / "config.json"))
        modules = vet_modules(config, "perception", ("preprocessor", "encoder"))
        scale = _check(config)
        self._torch, transformers = libraries(self._row.id)
        try:
            importing.wait()
        except ImportError as error:
            raise ModelUnavailable(f"{self._row.id} requires nemo_toolkit[asr]: {error}") from error
        self._device = device_of(self._settings)
        self._dtype = dtype_of(self._settings, self._device)
        llm_folder = self._llm_folder(folder)
        self._tokenizer = pretrained.load(transformers.AutoTokenizer, llm_folder)
        self._ends = [self._tokenizer.eos_token_id, self._tokenizer.pad_token_id]
        try:
            self._build(folder, modules, pretrained.load(transformers.AutoConfig, llm_folder), scale)
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise ModelUnavailable(f"the weights of {folder} do not match its configuration: {error}") from error
        memory.release()

    def infer(self, batch: Batch) -> list[Output]:
        """Transcribe the pieces."""
        outputs: list[Output] = [
            Transcript("", language="en", finish_reason="stop", tokens_generated=0) for _ in batch.pieces
        ]
        spoken = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        if spoken:
            for i, row in zip(spoken, self._transcribe(batch, [batch.pieces[i] for i in spoken]), strict=True):
                outputs[i] = row
        return outputs

    def close(self) -> None:
        """Free the device's memory."""
        self._llm = self._perception = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _folder(self) -> Path:
        return checkpoints.checkpoint(self._row.checkpoint, self._settings)

    def _llm_folder(self, folder: Path) -> Path:
        if (folder / LLM / "config.json").is_file():
            return folder / LLM
        return checkpoints.checkpoint(self._row.processor or "", self._settings, part=None)

    def _build(self, folder: Path, modules: dict[str, Any], config: Any, scale: float) -> None:
        """Make the encoder and the language model, and give them the checkpoint's weights."""
        import transformers
        from nemo.core.classes.common import Serialization
        from omegaconf import OmegaConf

        if config.model_type != "qwen3":
            raise ModelUnavailable(f"the language model of {folder} is {config.model_type}, not qwen3")
        tensors = _tensors(folder)
        with memory.many_objects(), without_random_values():
            preprocessor, encoder = (
                Serialization.from_config_dict(OmegaConf.create(modules[name])) for name in ("preprocessor", "encoder")
            )
            self._llm = transformers.Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa")
            projection = self._torch.nn.Linear(encoder.d_model, config.hidden_size)
        self._give(preprocessor, _below(tensors, "perception.preprocessor."), self._torch.float32)
        self._give(encoder, _below(tensors, "perception.encoder."), self._dtype)
        self._give(projection, _below(tensors, "perception.proj."), self._dtype)
        encoder.to(self._dtype)  # the buffers that a state does not hold, such as positional encodings
        self._give(self._llm, language_model(tensors, scale), self._dtype)
        preprocessor.featurizer.dither, preprocessor.featurizer.pad_to = 0.0, 0
        self._perception = SimpleNamespace(preprocessor=preprocessor, encoder=encoder, projection=projection)

    def _give(self, module: Any, tensors: Mapping[str, Any], dtype: Any) -> None:
        """Replace the module's parameters and buffers by the tensors, and move it to the device for inference."""
        cast = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in sorted(tensors.items())
        }
        module.load_state_dict(cast, strict=True, assign=True)
        module.to(self._device).eval().requires_grad_(False)

    def _transcribe(self, batch: Batch, pieces: Sequence[Piece]) -> list[Transcript]:
        options = batch.options
        arguments = generation.settings(options, longest=LONGEST)
        watch = generation.Watch(pieces, 0, lambda ids: self._read(ids).strip())
        with self._torch.inference_mode():
            prompts, mask = self._prompts(pieces)
            ids = self._llm.generate(
                inputs_embeds=prompts,
                attention_mask=mask,
                eos_token_id=self._tokenizer.eos_token_id,
                pad_token_id=self._tokenizer.pad_token_id,
                stopping_criteria=[watch],
                **arguments,
            )
        rows = [generation.hypothesis(row, self._ends, self._read) for row in ids.tolist()]
        outputs = [
            Transcript(
                row.text.strip(),
                language="en",
                tokens_generated=len(row.tokens),
                finish_reason=row.reason,
                warning=generation.length_warning(row.reason, options, arguments["max_new_tokens"]),
            )
            for row in rows
        ]
        watch.finish([output.text for output in outputs])
        return outputs

    def _prompts(self, pieces: Sequence[Piece]) -> tuple[Any, Any]:
        """Return the embeddings of the prompts, of shape (pieces, tokens, width), left-padded, and their mask."""
        torch = self._torch
        states, lengths = encode(self._perception, pieces, self._device, self._dtype)
        states = self._perception.projection(states.transpose(1, 2))
        before, after = (
            self._llm.model.embed_tokens(
                torch.tensor(self._tokenizer.encode(text, add_special_tokens=False), device=self._device)
            )
            for text in (BEFORE, AFTER)
        )
        rows = [torch.cat([before, row[:length], after]) for row, length in zip(states, lengths.tolist(), strict=True)]
        longest = max(map(len, rows))
        prompts = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=self._device)
        for prompt, kept, row in zip(prompts, mask, rows, strict=True):
            prompt[-len(row) :], kept[-len(row) :] = row, 1
        return prompts, mask

    def _read(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _check(config: ModelConfig) -> float:
    """Return the factor of the checkpoint's LoRA, 0 if it has none.

    Raises ModelUnavailable if the configuration is not that of a Canary-Qwen.
    """
    if "prompt_format" not in config or config["prompt_format"] != "qwen":
        raise config.refusal("has another prompt format than 'qwen'")
    adapter = config["perception"].get("modality_adapter")
    connector = adapter.get("_target_") if isinstance(adapter, dict) else None
    if connector != _CONNECTOR:
        raise config.refusal(f"names {str(connector)[:120]!r} as its adapter, and only IdentityConnector is supported")
    if "lora" not in config:
        return 0.0
    lora = config["lora"]
    if not isinstance(lora, dict) or not set(lora) <= _LORA:
        raise config.refusal("has a LoRA with other settings than " + ", ".join(sorted(_LORA)))
    rank, alpha = lora.get("r"), lora.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise config.refusal("has a LoRA without a rank r and a number lora_alpha")
    return alpha / rank


def _tensors(folder: Path) -> dict[str, Any]:
    """Return all tensors of a checkpoint by their names. Raises ModelUnavailable."""
    from safetensors import safe_open

    tensors: dict[str, Any] = {}
    for file in checkpoints.weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a mapping
    return tensors


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def language_model(tensors: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Return the tensors of the language model by the names that transformers has for them, the LoRA added.

    NeMo keeps the embeddings outside of the language model, and peft wraps it: `q_proj.weight` is then
    `q_proj.base_layer.weight`, to which `scale` times the product of `lora_B` and `lora_A` is added. Formula: E. Hu et
    al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. Of two tied tensors, safetensors holds one.
    """
    parts = {name.removeprefix("base_model.model."): value for name, value in _below(tensors, "llm.").items()}
    found = {
        name.replace(".base_layer.", "."): value for name, value in parts.items() if not name.endswith(_LORA_NAMES)
    }
    for name, lower in parts.items():
        if name.endswith(_LORA_NAMES[0]):
            layer = name.removesuffix(_LORA_NAMES[0])
            weight, upper = found[f"{layer}.weight"], parts[layer + _LORA_NAMES[1]]
            found[f"{layer}.weight"] = weight.float() + scale * (upper.float() @ lower.float())
    tied = [tensors.get("embed_tokens.weight"), found.get("lm_head.weight")]
    for name, value in zip(("model.embed_tokens.weight", "lm_head.weight"), (tied, tied[::-1]), strict=True):
        if (chosen := next((one for one in value if one is not None), None)) is not None:
            found[name] = chosen
    return found

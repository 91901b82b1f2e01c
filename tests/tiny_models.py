"""Tiny random language models with real tokenizers, so that the real vLLM engine runs in seconds."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CORPUS = (
    '{"reasoning": "", "interests": [{"interest": "weekend trout fishing", "confidence": 0.9}]}',
    "Products chosen, oldest first",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on two lines; it can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def make_text_model(folder: Path, **changes: Any) -> Path:
    """Write a random two-layer Qwen3; `changes` are of its config."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    Qwen3ForCausalLM(Qwen3Config(**sizes | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_text_encoder(folder: Path, padding_side: str = "left") -> Path:
    """Write a random two-layer embedding model of Qwen3-Embedding's kind: it pools the last token, and has a query prompt."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    make_text_model(folder)
    text: Any = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}  # as it is, not as a chat
    processor = {"padding_side": padding_side}
    tower = Transformer(str(folder), processor_kwargs=processor, modality_config=text, module_output_name="token_embeddings")
    modules = [tower, Pooling(tower.get_embedding_dimension(), "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, prompts={"query": "Query: "}).save_pretrained(str(folder))
    return folder


def make_vision_model(folder: Path) -> Path:
    """Write a random two-layer Qwen2.5-VL with its image processor; needs torchvision (see tests/vllm_support)."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = make_tokenizer()
    token = tokenizer.get_vocab().__getitem__
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    images = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**images),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def make_image_encoder(folder: Path, kind: str) -> Path:
    """Write a random CLIP ("clip") or SigLIP ("siglip") of one layer that reads 32-pixel images, with its image processor."""
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, **small}
    text = {"vocab_size": 64, "max_position_embeddings": 16, **small}
    model: transformers.PreTrainedModel
    processor: transformers.BaseImageProcessor
    if kind == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
        processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_model_that_dies(folder: Path) -> tuple[Path, str]:
    """Write the text model with a tokenizer of more tokens than it has embeddings; returns it and a text of which it dies.

    Such folders exist: tokens were added to the tokenizer and the model was not resized. vLLM lets the token through, because
    the tokenizer knows it, and the engine's process ends with an index out of range.
    """
    make_text_model(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    # vLLM pads its embeddings to a multiple of 64
    tokenizer.add_tokens([f"<|added_{index}|>" for index in range(200)])
    tokenizer.save_pretrained(folder)
    return folder, "<|added_199|>"

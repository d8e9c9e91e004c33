"""What PEFT's tests run with. A new method adds its lines here and nothing else."""

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, L2pConfig, ModaConfig, SamAdapterConfig, SamDecoderConfig


# (name of the test, model of models.py, config class, config arguments)
CASES = [
    ("SAM-Adapter", "TinySam", SamAdapterConfig, {}),
    ("SAM-Adapter, IoU head", "TinySam", SamAdapterConfig, {"train_iou_head": True, "scale_factor": 8}),
    ("SAM-Adapter, frozen decoder", "TinySam", SamAdapterConfig, {"decoder": "frozen"}),
    ("SAM-Adapter, decoder and neck saved", "TinySam", SamAdapterConfig, {"modules_to_save": ["neck"]}),
    ("SAM-Adapter, image size", "TinySam", SamAdapterConfig, {"image_size": 48}),
    ("SAM-Adapter, encoder", "TinySamVision", SamAdapterConfig, {"decoder": "frozen", "scale_factor": 8}),
    ("SAM-Adapter, unset decoder", "TinySamVision", SamAdapterConfig, {}),
    ("SAM-Adapter, low", "TinySamVision", SamAdapterConfig, {"features": ["low"], "frequency_rate": 0.1}),
    (
        "SAM-Adapter, weighted",
        "TinySamVision",
        SamAdapterConfig,
        {
            "features": ["embedding", "high", "low"],
            "feature_weights": [0.5, 1.0, 2.0],
            "embedding_layout": "legacy",
            "scale_factor": 4,
        },
    ),
    ("SAM-Adapter, bias only", "TinySamVision", SamAdapterConfig, {"features": []}),
    ("SAM-Adapter, one layer", "TinySamVision", SamAdapterConfig, {"layers_to_transform": [1]}),
    ("SAM-Adapter, layer left out", "TinySamVision", SamAdapterConfig, {"exclude_modules": ["layers.0"]}),
    ("SAM-Adapter, names", "TinySamVision", SamAdapterConfig, {"target_modules": ["patch_embed", "layers.1"]}),
    ("SAM-Adapter, neck saved", "TinySamVision", SamAdapterConfig, {"modules_to_save": ["neck"]}),
    ("Conv-LoRA", "TinySam", ConvLoraConfig, {}),
    ("Conv-LoRA, pruned decoder", "TinySam", ConvLoraConfig, {"num_mask_tokens": 1}),
    ("Conv-LoRA, frozen decoder", "TinySam", ConvLoraConfig, {"decoder": "frozen", "router": "switch"}),
    ("Conv-LoRA, image size", "TinySam", ConvLoraConfig, {"image_size": 48}),
    ("Conv-LoRA, encoder", "TinySamVision", ConvLoraConfig, {"num_experts": 4, "top_k": 2}),
    ("Conv-LoRA, one expert", "TinySamVision", ConvLoraConfig, {"num_experts": 1, "expert_scales": [0.5]}),
    ("Conv-LoRA, one layer", "TinySamVision", ConvLoraConfig, {"layers_to_transform": [1]}),
    (
        "Conv-LoRA, ranks",
        "TinySamVision",
        ConvLoraConfig,
        {"rank_pattern": {"layers.1.attn.qkv": 5}, "use_rslora": True},
    ),
    ("Conv-LoRA, neck saved", "TinySam", ConvLoraConfig, {"modules_to_save": ["neck"]}),
    ("CWSAM", "TinySam", CwsamConfig, {"decoder": "full"}),
    ("CWSAM, classes", "TinySam", CwsamConfig, {"num_labels": 3, "scale_factor": 8}),
    ("CWSAM, adapters alone", "TinySam", CwsamConfig, {"decoder": "full", "use_prompts": False}),
    ("CWSAM, encoder", "TinySamVision", CwsamConfig, {"lowpass_abs": True, "adapter_act": "relu"}),
    ("CWSAM, one layer", "TinySamVision", CwsamConfig, {"layers_to_transform": [1]}),
    (
        "Conv-LoRA, queries",
        "TinySam",
        ConvLoraConfig,
        {"decoder": "class_wise", "num_labels": 3, "num_mask_tokens": 4},
    ),
    ("SAM decoder", "TinySam", SamDecoderConfig, {}),
    ("SAM decoder, IoU head", "TinySam", SamDecoderConfig, {"train_iou_head": True}),
    ("SAM decoder, IoU head alone", "TinySam", SamDecoderConfig, {"decoder": "frozen", "train_iou_head": True}),
    ("SAM decoder, no-mask embedding", "TinySam", SamDecoderConfig, {"train_no_mask_embed": True}),
    ("SAM decoder, HQ", "TinySam", SamDecoderConfig, {"decoder": "hq"}),
    ("SAM decoder, HQ of the first block", "TinySam", SamDecoderConfig, {"decoder": "hq", "early_layer": 0}),
    ("SAM-Adapter, HQ decoder", "TinySam", SamAdapterConfig, {"decoder": "hq", "image_size": 48}),
    ("Conv-LoRA, HQ decoder", "TinySam", ConvLoraConfig, {"decoder": "hq"}),
    ("SAM decoder, neck saved", "TinySam", SamDecoderConfig, {"modules_to_save": ["neck"]}),
    ("SAM decoder, SAM 2", "TinySam2", SamDecoderConfig, {}),
    (
        "SAM decoder, SAM 2, IoU head and size",
        "TinySam2",
        SamDecoderConfig,
        {"train_iou_head": True, "image_size": 64},
    ),
    ("SAM decoder, SAM 3", "TinySam3Tracker", SamDecoderConfig, {}),
    ("SAM decoder, SAM-HQ", "TinySamHQ", SamDecoderConfig, {}),
    ("SAM-Adapter, SAM 2", "TinySam2", SamAdapterConfig, {}),
    ("SAM-Adapter, SAM 2, one group", "TinySam2", SamAdapterConfig, {"layers_to_transform": [1], "features": ["low"]}),
    ("SAM-Adapter, SAM 3", "TinySam3Tracker", SamAdapterConfig, {}),
    ("SAM-Adapter, SAM-HQ", "TinySamHQ", SamAdapterConfig, {"scale_factor": 8}),
    ("Conv-LoRA, SAM 2", "TinySam2", ConvLoraConfig, {"num_experts": 2, "lora_alpha": 1}),
    ("Conv-LoRA, SAM 3", "TinySam3Tracker", ConvLoraConfig, {"num_experts": 2}),
    ("Conv-LoRA, SAM-HQ", "TinySamHQ", ConvLoraConfig, {"num_experts": 2}),
    ("CWSAM, SAM 2", "TinySam2", CwsamConfig, {"decoder": "full"}),
    ("CWSAM, SAM 3, classes", "TinySam3Tracker", CwsamConfig, {"num_labels": 3}),
    ("CWSAM, SAM-HQ", "TinySamHQ", CwsamConfig, {"decoder": "full"}),
    ("L2P", "TinySam", L2pConfig, {}),
    ("L2P, SAM 2", "TinySam2", L2pConfig, {}),
    ("L2P, SAM 3", "TinySam3Tracker", L2pConfig, {}),
    ("L2P, SAM-HQ", "TinySamHQ", L2pConfig, {}),
    ("MoDA, SAM 2", "TinySam2", ModaConfig, {"domains": ["first"]}),
    ("MoDA, SAM 3", "TinySam3Tracker", ModaConfig, {"domains": ["first"]}),
    ("MoDA, SAM-HQ", "TinySamHQ", ModaConfig, {"domains": ["first"]}),
    ("MoDA", "TinySam", ModaConfig, {"domains": ["first"], "inner": {"peft_type": "SAM_ADAPTER", "scale_factor": 8}}),
    ("MoDA, decoder", "TinySam", ModaConfig, {"domains": ["first"], "inner": {"peft_type": "SAM_DECODER"}}),
]

RANDOM = {"init_weights": False}

# (name of the test, model, config class, arguments of the first adapter, arguments of the second)
PAIRS = [
    ("SAM-Adapter, same", "TinySam", SamAdapterConfig, RANDOM, RANDOM),
    (
        "SAM-Adapter, other layers",
        "TinySam",
        SamAdapterConfig,
        {"layers_to_transform": [0], "decoder": "frozen", **RANDOM},
        {"layers_to_transform": [1], "decoder": "frozen", **RANDOM},
    ),
    (
        "SAM-Adapter, other features and decoder",
        "TinySam",
        SamAdapterConfig,
        {"features": ["embedding"], **RANDOM},
        {"features": ["low"], "scale_factor": 8, "decoder": "frozen", **RANDOM},
    ),
    ("SAM-Adapter, encoder", "TinySamVision", SamAdapterConfig, RANDOM, {"scale_factor": 4, **RANDOM}),
    ("Conv-LoRA, same", "TinySam", ConvLoraConfig, RANDOM, RANDOM),
    (
        "Conv-LoRA, other layers and experts",
        "TinySam",
        ConvLoraConfig,
        {"layers_to_transform": [0], "decoder": "frozen", **RANDOM},
        {"layers_to_transform": [1], "num_experts": 3, "r": 5, **RANDOM},
    ),
    ("CWSAM, same", "TinySam", CwsamConfig, {"decoder": "full", **RANDOM}, {"decoder": "full", **RANDOM}),
    (
        "CWSAM, other parts",
        "TinySam",
        CwsamConfig,
        {"decoder": "frozen", "use_prompts": False, **RANDOM},
        {"decoder": "full", "block_adapters": False, **RANDOM},
    ),
    ("SAM decoder, same", "TinySam", SamDecoderConfig, RANDOM, RANDOM),
    ("SAM decoder, other parts", "TinySam", SamDecoderConfig, {"train_iou_head": True, **RANDOM}, RANDOM),
]

UNMERGEABLE = {
    SamAdapterConfig: "the prompts depend on the image, so no base weight can hold them",
    CwsamConfig: "the prompts depend on the image and the adapters are not linear",
    L2pConfig: "which prompts act depends on the image",
    ModaConfig: "which domain's adapter acts depends on the image",
    ConvLoraConfig: "the update is not linear, mixes tokens and picks experts by the input",
    "hq": "the branch sees an early block of the encoder",
}

# PEFT's tests that do not fit, by name, with the reason.
HUB = "reads adapters from the Hub"
NOT_APPLICABLE = {
    "test_from_pretrained": HUB,
    "test_from_pretrained_cache_dir": HUB,
    "test_save_pretrained_with_runtime_config": HUB,
    "test_save_load_roundtrip_fsdp_wrapped_learnable_bias": (
        "loads a file with base biases under a config that trains none, which the strict check of keys refuses"
    ),
}
CLASS_WISE = {
    "test_parameters_after_loading_model": "trains at a rate of 0.5, at which the class head diverges to NaN",
}
PROMPTS = {
    "test_training_custom_models": "the loss of PEFT's test reaches no key of a prompt, which has a loss of its own",
    "test_disable_adapters": "the prompts act from the start, as published",
}
POOL = {"test_active_adapter": "one pool of domains is active at a time"}
PRUNED = {"test_disable_adapters": "a pruned, class-wise or HQ decoder is another one from the start, by design"}
RESIZED = {
    "test_disable_adapters": "a resized base gives other outputs than the original, by design",
    "test_get_base_model_state_dict": "the position tables of a resized base have other shapes, by design",
}

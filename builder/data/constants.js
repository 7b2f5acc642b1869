"use strict";
/* Constants of the Python package, by module. Written by scripts/generate_builder_data.py. */
{
  const constants = {
 "repr": {
  "ESCAPES": {
   "\\": "\\\\",
   "\n": "\\n",
   "\r": "\\r",
   "\t": "\\t"
  }
 },
 "cli.init": {
  "COMMANDS": {
   "wishbone": "wishbone train",
   "trl": "trl dpo --config"
  },
  "OF_SCRIPTS": {
   "script.gradient_checkpointing": "gradient checkpointing",
   "script.precompute_reference": "reference"
  },
  "STANDARD_OUTPUT": "-",
  "SUFFIXES": {
   "yml": "yaml",
   "py": "python"
  },
  "WITHOUT_GPU": [
   "none",
   "cpu",
   "cpu only",
   "no",
   "no gpu",
   "without"
  ]
 },
 "config.document": {
  "FLOAT": "[-+]?(?:(?:\\d+\\.\\d*|\\.\\d+)(?:[eE][-+]?\\d+)?|\\d+[eE][-+]?\\d+)",
  "INTEGER": "[-+]?(?:0|[1-9]\\d{0,3999})",
  "WORDS": {
   "": null,
   "~": null,
   "null": null,
   "Null": null,
   "NULL": null,
   "true": true,
   "True": true,
   "TRUE": true,
   "false": false,
   "False": false,
   "FALSE": false,
   ".inf": "inf",
   ".Inf": "inf",
   ".INF": "inf",
   "+.inf": "inf",
   "+.Inf": "inf",
   "+.INF": "inf",
   "-.inf": "-inf",
   "-.Inf": "-inf",
   "-.INF": "-inf",
   ".nan": "nan",
   ".NaN": "nan",
   ".NAN": "nan"
  }
 },
 "config.emit": {
  "ESCAPES": {
   "\"": "\\\"",
   "\\": "\\\\",
   "\b": "\\b",
   "\f": "\\f",
   "\n": "\\n",
   "\r": "\\r",
   "\t": "\\t"
  },
  "JSON_WORDS": {
   "null": "null",
   "true": "true",
   "false": "false"
  },
  "PLAIN": "-./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz",
  "PLAIN_FIRST": "/ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
  "PYTHON_WORDS": {
   "null": "None",
   "true": "True",
   "false": "False"
  },
  "WHOLE": 1e+16,
  "WIDTH": 100,
  "WORDS": [
   "false",
   "n",
   "no",
   "null",
   "off",
   "on",
   "true",
   "y",
   "yes"
  ]
 },
 "config.schema": {
  "EMBEDDED_MODEL": "smollm2-135m-instruct"
 },
 "config.targets": {
  "AS_ASKED": "As asked.",
  "Format": [
   "yaml",
   "json",
   "python"
  ]
 },
 "config.written_numbers": {
  "COUNTED": "([0-9][0-9.,_' kKmM]*) ?(?:token|step|pair|gpu)s?",
  "DIGITS": "[0-9]+",
  "FRACTION": "([0-9]{1,6}) ?/ ?([1-9][0-9]{0,5})",
  "GROUPED": "[0-9]{1,3}(?:[,_' ][0-9]{3})+",
  "MEASURED": "([0-9.][0-9.,eE+-]*) ?(?:epochs?|gi?b|billion|b|f)",
  "OF_TEN": "(?:([0-9]{1,9}(?:\\.[0-9]{1,9})?) ?[x*\\u00d7\\u00b7] ?)?10 ?(?:\\^|\\*\\*)? ?([-\\u2212][0-9]{1,3})",
  "PERCENT": "([0-9]{1,3}(?:[.,][0-9]{1,6})?) ?%",
  "THOUSANDS": "([0-9]{1,6}) ?([kKmM])"
 },
 "engine.execution": {
  "RECOMPUTED_HEAD_CHUNK": 268435456,
  "SHRINK": 0.9,
  "SMALL_HEAD_CHUNK": 134217728,
  "SMALL_TILE": 1024
 },
 "engine.fitting": {
  "LEAST_PROBE": 128,
  "MOST_ROW_TOKENS": 32768,
  "PROBE_TOKENS": 4096,
  "SPARE": 0.04
 },
 "planning.alternatives": {
  "SHORTEST": 64
 },
 "planning.budget": {
  "ROW_TOKENS": {
   "cuda": 8192,
   "cpu": 1024
  },
  "SHARE_OF_FREE_MEMORY": {
   "cuda": 0.7,
   "cpu": 0.25
  }
 },
 "planning.facts": {
  "FILE_FORMATS": {
   ".json": "json",
   ".jsonl": "json",
   ".parquet": "parquet",
   ".csv": "csv"
  },
  "FULL_ROW": 8192,
  "LEAST": [
   "f32",
   "f16",
   "bf16",
   "fp8",
   "int8",
   "nf4"
  ],
  "ROOMY": [
   "bf16",
   "fp8",
   "int8",
   "nf4"
  ]
 },
 "planning.gpus": {
  "BF16_FROM": 8.0,
  "COUNTED": "([0-9]{1,3})(?: ?x ?| )([a-z].*)|(.*[a-z0-9]) ?(?<![rt])x ?([0-9]{1,3})",
  "FORM": "\\d+gb|sxm|pcie",
  "FP8_FROM": 8.9,
  "INT8_FROM": 7.5,
  "MEMORY": "(?:an? |nvidia |gpu )*(\\d{1,3}) ?g(?:i?b)?(?: of)?(?: v?ram| memory| gpu| card)?",
  "MUCH_FASTER": 1.5,
  "NEAR": 0.5,
  "NOT_SUPPORTED": [
   [
    "(?:amd|radeon|instinct)\\b.*|mi ?[0-9]{2,3}[a-z]?|rx ?[0-9]{3,4}.*",
    "an AMD GPU"
   ],
   [
    "(?:apple|mac|macbook)\\b.*|m[1-9]( pro| max| ultra)?|mps",
    "Apple silicon"
   ],
   [
    "intel\\b.*|arc .*|gaudi ?[0-9]?|max 1[0-9]{3}",
    "an Intel accelerator"
   ],
   [
    "(google )?tpu.*",
    "a TPU"
   ],
   [
    "(aws )?(trainium|inferentia).*",
    "an AWS accelerator"
   ]
  ],
  "SAID_AROUND": [
   "blackwell",
   "edition",
   "geforce",
   "generation",
   "gpu",
   "graphics",
   "nvidia",
   "quadro",
   "rtx",
   "series",
   "server",
   "tesla",
   "workstation"
  ],
  "SIGNED": "(?:^[^a-z0-9 (]+ ?| [^a-z0-9 (]+)[0-9]",
  "SERIES": "[2-5]0",
  "SIZE": "\\d+gb",
  "SOLD": [
   4,
   6,
   8,
   10,
   11,
   12,
   16,
   24,
   32,
   40,
   48,
   80,
   94,
   96,
   141,
   192,
   288
  ],
  "SPELLED": "\\b([0-9]{1,3})[ -]?gi?b?\\b"
 },
 "planning.expert_time": {
  "ADAPTED": 9.5,
  "CODE_BYTES": {
   "nf4": 0.5,
   "fp8": 1.0,
   "int8": 1.0
  },
  "TILE": 128,
  "TURNED": 0.8
 },
 "planning.host_time": {
  "AGAIN": 0.005,
  "LAYER": 0.01,
  "PARAMETER": 0.00047
 },
 "planning.known_models": {
  "FORMS": [
   "4bit",
   "base",
   "bnb",
   "chat",
   "hf",
   "instruct",
   "it",
   "meta",
   "pt",
   "unsloth"
  ]
 },
 "planning.memory": {
  "COPYING": [
   "adagrad",
   "adamw_torch",
   "rmsprop"
  ],
  "CONTEXT": 536870912,
  "EIGHT_BITS": [
   "fp8",
   "int8"
  ],
  "GIB": 1073741824,
  "HOLES": 0.8,
  "LIBRARY_WORKSPACE": 67108864,
  "MIB": 1048576,
  "MemoryPlan": {
   "method": "lora",
   "rank": 16,
   "targets": "all-linear",
   "scoredTokens": null,
   "keptLayers": null,
   "offload": false,
   "pieces": false,
   "headChunk": null,
   "optimizer": "adamw_torch",
   "device": "cuda",
   "reference": "none",
   "deviceMemory": 25769803776.0,
   "adapterBytes": 4
  },
  "NF4_BYTES": 0.515869140625,
  "PROCESS": 1258291200,
  "STATE_ELEMENTS": {
   "adamw_torch": 2.0,
   "adamw_torch_fused": 2.0,
   "paged_adamw_32bit": 2.0,
   "adamw_8bit": 0.5,
   "paged_adamw_8bit": 0.5,
   "lion_32bit": 1.0,
   "lion_8bit": 0.25,
   "adagrad": 1.0,
   "rmsprop": 1.0,
   "adafactor": 0.0,
   "sgd": 0.0
  }
 },
 "planning.mixers": {
  "DELTA_HOST": 0.016,
  "KEPT_OF_MIXER": 2,
  "LETTERS": {
   "M": "mamba",
   "*": "attention",
   "-": "mlp",
   "E": "moe"
  },
  "MAMBA_HOST": 0.008,
  "MOST_STATE_BYTES": 536870912,
  "RECURRENT_TYPES": [
   "conv",
   "linear_attention",
   "mamba"
  ],
  "SCAN_CHUNK": 64
 },
 "planning.model_shape": {
  "EXPERTS": [
   "num_local_experts",
   "num_experts",
   "n_routed_experts"
  ],
  "FOUR_NORMS": [
   "gemma2",
   "gemma3",
   "gemma3_text",
   "glm4"
  ],
  "FUSED": [
   "phi3"
  ],
  "GATED_QUERIES": [
   "qwen3_5",
   "qwen3_5_moe",
   "qwen3_5_moe_text",
   "qwen3_5_text",
   "qwen3_next"
  ],
  "HEAD_NORMS": [
   "gemma3",
   "gemma3_text",
   "olmo2",
   "olmo3",
   "olmoe",
   "qwen3",
   "qwen3_moe"
  ],
  "INSTEAD": "give the model's own config.json, or name a model that is known",
  "LINEAR_EXPERTS": [
   "afmoe",
   "cohere2_moe",
   "deepseek_v2",
   "deepseek_v3",
   "deepseek_v32",
   "dots1",
   "ernie4_5_moe",
   "exaone_moe",
   "flex_olmo",
   "glm4_moe",
   "glm4_moe_lite",
   "glm_moe_dsa",
   "hunyuan_v1_moe",
   "longcat_flash",
   "mellum",
   "minimax",
   "minimax_m2",
   "mixtral",
   "olmoe",
   "qwen3_moe",
   "qwen3_next",
   "sarvam_mla",
   "solar_open"
  ],
  "ModelShape": {
   "norms": 2,
   "headNorms": false,
   "biases": 0,
   "experts": 0,
   "expertsUsed": 0,
   "expertInner": 0,
   "positions": 0,
   "expertLayers": 0,
   "denseInner": 0,
   "sharedInner": 0,
   "recurrent": 0,
   "mixer": [],
   "scan": {
    "held": 0,
    "states": 0,
    "host": 0.0
   },
   "gatedQueries": false,
   "mlpAlone": 0,
   "gated": true
  },
  "ONE_PART": [
   "nemotron_h"
  ],
  "ONLY_MAMBA": [
   "falcon_mamba",
   "mamba"
  ],
  "OTHER_NAMES": {
   "hidden_size": [
    "n_embd",
    "d_model",
    "dim"
   ],
   "num_hidden_layers": [
    "n_layer",
    "num_layers",
    "n_layers"
   ],
   "num_attention_heads": [
    "n_head",
    "n_heads"
   ],
   "intermediate_size": [
    "n_inner",
    "ffn_dim",
    "ffn_hidden_size"
   ],
   "vocab_size": [
    "padded_vocab_size"
   ],
   "mamba_n_heads": [
    "mamba_num_heads"
   ],
   "mamba_d_head": [
    "mamba_head_dim"
   ],
   "mamba_n_groups": [
    "n_groups"
   ],
   "mamba_d_state": [
    "ssm_state_size"
   ],
   "shared_expert_intermediate_size": [
    "moe_shared_expert_intermediate_size"
   ]
  },
  "QUERY_KEY_VALUE_BIAS": [
   "qwen2",
   "qwen2_moe"
  ],
  "TIED": [
   "cohere",
   "cohere2",
   "gemma",
   "gemma2",
   "gemma3",
   "gemma3_text",
   "smollm3"
  ]
 },
 "planning.room": {
  "LONGEST": 16777216
 },
 "planning.run_plan": {
  "DTYPES": {
   "float32": "f32",
   "bfloat16": "bf16",
   "float16": "f16"
  }
 },
 "planning.sharded": {
  "MASTER_BYTES": 4,
  "NVLINK_RATE": 300000000000.0,
  "WITHOUT_COPY": {
   "adamw_torch": "adamw_torch_fused",
   "adagrad": "lion_32bit",
   "rmsprop": "lion_32bit"
  }
 },
 "planning.situation": {
  "NO_GPU": "none"
 },
 "planning.step_time": {
  "FULL_ROW": 4096,
  "LOGITS": 6,
  "SCAN_TRAFFIC": 13.7,
  "TRAFFIC": 33.0,
  "YARDSTICK": "H200"
 }
};
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, constants };
  else module.exports = { constants };
}

"use strict";
/* The rules of the advice. Written by scripts/generate_builder_data.py. */
{
  const rules = {
 "facts": [
  "model",
  "parameters_billion",
  "gpu",
  "gpu_memory_gib",
  "gpus",
  "method",
  "reference",
  "reference_model",
  "data",
  "pairs",
  "prompt_tokens",
  "completion_tokens",
  "longest_tokens",
  "noisy_labels",
  "learning_rate",
  "symptoms",
  "target",
  "output",
  "data_format",
  "has_gpu",
  "gpu_memory",
  "capability",
  "bf16",
  "fp8",
  "int8",
  "int8_over_fp8",
  "model_billion",
  "least_f32_gib",
  "least_f16_gib",
  "least_bf16_gib",
  "least_fp8_gib",
  "least_int8_gib",
  "least_nf4_gib",
  "least_full_gib",
  "roomy_bf16_gib",
  "roomy_fp8_gib",
  "roomy_int8_gib",
  "roomy_nf4_gib"
 ],
 "settings": [
  "model.name",
  "model.reference",
  "model.dtype",
  "model.quantization",
  "adapter.method",
  "adapter.rank",
  "adapter.alpha",
  "adapter.dropout",
  "adapter.target_modules",
  "data.train",
  "data.eval_fraction",
  "data.max_length",
  "preference.loss",
  "preference.loss_weights",
  "preference.beta",
  "preference.label_smoothing",
  "preference.ld_alpha",
  "preference.dpop_lambda",
  "training.learning_rate",
  "training.epochs",
  "training.batch_size",
  "training.gradient_accumulation",
  "training.warmup_ratio",
  "training.scheduler",
  "training.max_grad_norm",
  "training.optimizer",
  "training.token_budget",
  "training.activations",
  "script.output_dir",
  "script.room_gib",
  "script.weights",
  "script.least_gib",
  "script.roomy_gib",
  "script.gradient_checkpointing",
  "script.precompute_reference",
  "script.base_loss",
  "script.anchor",
  "script.usual_rate",
  "script.pairs_a_step"
 ],
 "rules": [
  {
   "id": "names",
   "when": true,
   "kind": "setting",
   "source": "wishbone-design",
   "set": {
    "model.name": {
     "fact": "model"
    },
    "data.train": {
     "fact": "data"
    },
    "script.output_dir": "dpo-run"
   },
   "reason": "As asked."
  },
  {
   "id": "hub-name",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "model"
     },
     "smollm2-135m-instruct"
    ],
    [
     "in",
     {
      "fact": "target"
     },
     [
      "trl",
      "unsloth"
     ]
    ]
   ],
   "kind": "setting",
   "source": "wishbone-design",
   "set": {
    "model.name": "HuggingFaceTB/SmolLM2-135M-Instruct"
   },
   "reason": "Only Wishbone knows the built-in name; this is the same model on the hub."
  },
  {
   "id": "room",
   "when": {
    "fact": "has_gpu"
   },
   "kind": "setting",
   "source": "wishbone-benchmarks",
   "set": {
    "script.room_gib": [
     "/",
     [
      "floor",
      [
       "*",
       {
        "fact": "gpu_memory"
       },
       92
      ]
     ],
     100
    ]
   },
   "reason": "Memory estimates may be 8% off, so a plan uses 92% of the {gpu_memory} GiB."
  },
  {
   "id": "reference-adapter-off",
   "kind": "setting",
   "source": "trl-dpo",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "any",
     [
      "=",
      {
       "fact": "reference"
      },
      "none"
     ],
     [
      "=",
      {
       "fact": "reference_model"
      },
      {
       "fact": "model"
      }
     ]
    ]
   ],
   "set": {
    "model.reference": null,
    "script.precompute_reference": false
   },
   "reason": "With its adapter off, the model is its own reference (ref_model=None): no second model takes memory."
  },
  {
   "id": "reference-stored",
   "kind": "setting",
   "source": "trl-dpo",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "method"
     },
     "full"
    ],
    [
     "any",
     [
      "=",
      {
       "fact": "reference"
      },
      "none"
     ],
     [
      "=",
      {
       "fact": "reference_model"
      },
      {
       "fact": "model"
      }
     ]
    ]
   ],
   "set": {
    "model.reference": null,
    "script.precompute_reference": true
   },
   "reason": "Full fine-tuning changes every weight, so the reference's log-probabilities are computed and stored before the first step: no second model takes memory."
  },
  {
   "id": "reference-separate",
   "kind": "setting",
   "source": "dpo",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "reference"
     },
     "given"
    ],
    [
     "not",
     [
      "=",
      {
       "fact": "reference_model"
      },
      {
       "fact": "model"
      }
     ]
    ]
   ],
   "set": {
    "model.reference": {
     "fact": "reference_model"
    },
    "script.precompute_reference": false
   },
   "reason": "A reference with other weights is loaded as a second, frozen model. It must have the same tokenizer, and it takes memory too."
  },
  {
   "id": "adapter",
   "kind": "setting",
   "source": "qlora",
   "when": [
    "=",
    {
     "fact": "method"
    },
    "lora"
   ],
   "set": {
    "adapter.method": "lora",
    "adapter.rank": 16,
    "adapter.alpha": 16,
    "adapter.dropout": 0,
    "adapter.target_modules": "all-linear"
   },
   "reason": "Adapters match full fine-tuning when all linear layers have one; their rank hardly matters."
  },
  {
   "id": "weights-float32",
   "kind": "setting",
   "source": "wishbone-log",
   "when": [
    "not",
    {
     "fact": "has_gpu"
    }
   ],
   "set": {
    "model.dtype": "float32",
    "model.quantization": "none",
    "script.weights": "f32",
    "script.least_gib": {
     "fact": "least_f32_gib"
    }
   },
   "reason": "Without a GPU, float32 is exact, and most processors are no faster in 16 bits."
  },
  {
   "id": "weights-bfloat16",
   "kind": "setting",
   "source": "nvidia-capability",
   "when": {
    "fact": "bf16"
   },
   "set": {
    "model.dtype": "bfloat16",
    "model.quantization": "none",
    "script.weights": "bf16",
    "script.least_gib": {
     "fact": "least_bf16_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_bf16_gib"
    }
   },
   "reason": "GPUs from compute capability 8.0 on, such as this one ({capability}), compute in bfloat16, which has the range of float32."
  },
  {
   "id": "weights-float16",
   "kind": "setting",
   "source": "nvidia-capability",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "not",
     {
      "fact": "bf16"
     }
    ]
   ],
   "set": {
    "model.dtype": "float16",
    "model.quantization": "none",
    "script.weights": "f16",
    "script.least_gib": {
     "fact": "least_f16_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_bf16_gib"
    }
   },
   "reason": "Compute capability {capability} has no bfloat16 arithmetic (8.0 and later have), so the 16-bit format is float16."
  },
  {
   "id": "weights-float32-trained",
   "kind": "setting",
   "source": "mixed-precision",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "method"
     },
     "full"
    ],
    {
     "fact": "has_gpu"
    },
    [
     "not",
     {
      "fact": "bf16"
     }
    ]
   ],
   "set": {
    "model.dtype": "float32",
    "script.weights": "f32"
   },
   "reason": "Without bfloat16, trained weights stay in float32, because float16 loses small updates."
  },
  {
   "id": "full",
   "kind": "setting",
   "source": "wishbone-design",
   "when": [
    "=",
    {
     "fact": "method"
    },
    "full"
   ],
   "set": {
    "adapter.method": "full",
    "script.least_gib": {
     "fact": "least_full_gib"
    },
    "script.roomy_gib": null
   },
   "reason": "You asked to train every weight; adapters need less memory and forget less."
  },
  {
   "id": "weights-fp8",
   "kind": "setting",
   "source": "wishbone-benchmarks",
   "when": [
    "all",
    {
     "fact": "fp8"
    },
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    [
     "<=",
     3,
     {
      "fact": "model_billion"
     }
    ],
    [
     "<=",
     {
      "fact": "least_fp8_gib"
     },
     {
      "setting": "script.room_gib"
     }
    ]
   ],
   "set": {
    "model.quantization": "fp8",
    "script.weights": "fp8",
    "script.least_gib": {
     "fact": "least_fp8_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_fp8_gib"
    }
   },
   "reason": "Compute capability {capability} multiplies in FP8, where a step of an 8B model took 0.7 of its time in bfloat16. Below 3 billion weights, kernel launches limit a step and FP8 gains little."
  },
  {
   "id": "weights-int8",
   "kind": "setting",
   "source": "wishbone-eight-bits",
   "when": [
    "all",
    {
     "fact": "int8"
    },
    [
     "not",
     {
      "fact": "fp8"
     }
    ],
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    [
     "<=",
     3,
     {
      "fact": "model_billion"
     }
    ],
    [
     "<=",
     {
      "fact": "least_int8_gib"
     },
     {
      "setting": "script.room_gib"
     }
    ]
   ],
   "set": {
    "model.quantization": "int8",
    "script.weights": "int8",
    "script.least_gib": {
     "fact": "least_int8_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_int8_gib"
    }
   },
   "reason": "Compute capability {capability} has no FP8. Its int8 products run at twice the published rate of 16 bits or more, and after a rotation int8 errs less than FP8. Below 3 billion weights, kernel launches limit a step and 8 bits gain little."
  },
  {
   "id": "weights-int8-faster",
   "kind": "setting",
   "source": "wishbone-eight-bits",
   "when": [
    "all",
    {
     "fact": "fp8"
    },
    [
     "<=",
     1.5,
     {
      "fact": "int8_over_fp8"
     }
    ],
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    [
     "<=",
     3,
     {
      "fact": "model_billion"
     }
    ],
    [
     "<=",
     {
      "fact": "least_int8_gib"
     },
     {
      "setting": "script.room_gib"
     }
    ]
   ],
   "set": {
    "model.quantization": "int8",
    "script.weights": "int8",
    "script.least_gib": {
     "fact": "least_int8_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_int8_gib"
    }
   },
   "reason": "This GPU's published int8 rate is {int8_over_fp8} times that of its FP8, because GeForce cards halve products that are summed in float32, and after a rotation int8 errs less than FP8."
  },
  {
   "id": "nan-without-fp8",
   "kind": "setting",
   "source": "fp8-formats",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "nan"
    ],
    {
     "fact": "bf16"
    },
    [
     "in",
     {
      "setting": "script.weights"
     },
     [
      "fp8",
      "int8"
     ]
    ]
   ],
   "set": {
    "model.quantization": "none",
    "script.weights": "bf16",
    "script.least_gib": {
     "fact": "least_bf16_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_bf16_gib"
    }
   },
   "reason": "After a NaN, first give up 8 bits: FP8 ends at 448, int8 at 127, bfloat16 reaches as far as float32."
  },
  {
   "id": "nan-without-int8",
   "kind": "setting",
   "source": "mixed-precision",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "nan"
    ],
    [
     "not",
     {
      "fact": "bf16"
     }
    ],
    [
     "=",
     {
      "setting": "script.weights"
     },
     "int8"
    ]
   ],
   "set": {
    "model.quantization": "none",
    "script.weights": "f16",
    "script.least_gib": {
     "fact": "least_f16_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_bf16_gib"
    }
   },
   "reason": "After a NaN, first give up 8 bits."
  },
  {
   "id": "nan-bfloat16",
   "kind": "setting",
   "source": "mixed-precision",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "nan"
    ],
    {
     "fact": "bf16"
    }
   ],
   "set": {
    "model.dtype": "bfloat16"
   },
   "reason": "float16 overflows above 65504. If the run with the NaN was in float16, bfloat16 cures it: it has the range of float32."
  },
  {
   "id": "nan-float32",
   "kind": "setting",
   "source": "mixed-precision",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "nan"
    ],
    [
     "=",
     {
      "setting": "script.weights"
     },
     "f16"
    ],
    [
     "<=",
     {
      "fact": "least_f32_gib"
     },
     {
      "setting": "script.room_gib"
     }
    ]
   ],
   "set": {
    "model.dtype": "float32",
    "script.weights": "f32",
    "script.least_gib": {
     "fact": "least_f32_gib"
    }
   },
   "reason": "float16 overflows above 65504 and this GPU has no bfloat16; float32 fits in its memory."
  },
  {
   "id": "weights-nf4",
   "kind": "setting",
   "source": "qlora",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "<",
     {
      "setting": "script.room_gib"
     },
     {
      "setting": "script.least_gib"
     }
    ]
   ],
   "set": {
    "model.quantization": "nf4",
    "script.weights": "nf4",
    "script.least_gib": {
     "fact": "least_nf4_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_nf4_gib"
    }
   },
   "reason": "With 16 bits per weight the longest pair does not fit into {script.room_gib} GiB. NF4 stores 4 bits, and adapters on it learn as well."
  },
  {
   "id": "memory-nf4",
   "kind": "setting",
   "source": "qlora",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "out_of_memory"
    ],
    {
     "fact": "has_gpu"
    },
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "not",
     [
      "=",
      {
       "setting": "script.weights"
      },
      "nf4"
     ]
    ]
   ],
   "set": {
    "model.quantization": "nf4",
    "script.weights": "nf4",
    "script.least_gib": {
     "fact": "least_nf4_gib"
    },
    "script.roomy_gib": {
     "fact": "roomy_nf4_gib"
    }
   },
   "reason": "The run was out of memory, so frozen weights get 4 bits (NF4), a quarter of 16 bits; adapters on them learn as well."
  },
  {
   "id": "activations",
   "when": true,
   "kind": "setting",
   "source": "wishbone-design",
   "set": {
    "training.activations": "auto",
    "training.token_budget": "auto"
   },
   "reason": "Memory is measured before the first step: what fits is kept for the backward pass, the rest is recomputed."
  },
  {
   "id": "activations-recomputed",
   "when": true,
   "kind": "setting",
   "source": "checkpointing",
   "set": {
    "script.gradient_checkpointing": true
   },
   "reason": "Layers are recomputed in the backward pass instead of kept: a third more work, far less memory."
  },
  {
   "id": "activations-kept",
   "kind": "setting",
   "source": "checkpointing",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "in",
     {
      "setting": "script.weights"
     },
     [
      "bf16",
      "f16",
      "fp8",
      "int8",
      "nf4"
     ]
    ],
    [
     "<=",
     {
      "setting": "script.roomy_gib"
     },
     {
      "setting": "script.room_gib"
     }
    ],
    [
     "<=",
     {
      "setting": "script.least_gib"
     },
     [
      "*",
      {
       "setting": "script.room_gib"
      },
      0.8
     ]
    ]
   ],
   "set": {
    "script.gradient_checkpointing": false
   },
   "reason": "All activations of 8192 tokens fit ({script.roomy_gib} of {script.room_gib} GiB), so nothing needs a second forward pass."
  },
  {
   "id": "activations-unsloth",
   "kind": "setting",
   "source": "unsloth-docs",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "in",
     {
      "fact": "target"
     },
     [
      "wishbone",
      "unsloth"
     ]
    ],
    [
     "=",
     {
      "setting": "script.gradient_checkpointing"
     },
     true
    ]
   ],
   "set": {
    "script.gradient_checkpointing": "unsloth"
   },
   "reason": "All activations together do not fit into {script.room_gib} GiB; \"unsloth\" recomputes layers and keeps their inputs in host memory."
  },
  {
   "id": "activations-offload",
   "kind": "setting",
   "source": "wishbone-benchmarks",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "<",
     [
      "*",
      {
       "setting": "script.room_gib"
      },
      0.8
     ],
     {
      "setting": "script.least_gib"
     }
    ]
   ],
   "set": {
    "training.activations": "offload"
   },
   "reason": "The longest pair alone needs {script.least_gib} of {script.room_gib} GiB, so layer inputs are kept in host memory."
  },
  {
   "id": "memory-offload",
   "kind": "setting",
   "source": "wishbone-benchmarks",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "out_of_memory"
    ],
    {
     "fact": "has_gpu"
    }
   ],
   "set": {
    "training.activations": "offload",
    "training.token_budget": 2048
   },
   "reason": "Short rows with layer inputs in host memory need the least memory of all: 5.5 GiB for an 8B model in NF4."
  },
  {
   "id": "memory-checkpointing",
   "kind": "setting",
   "source": "unsloth-docs",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "out_of_memory"
    ],
    {
     "fact": "has_gpu"
    },
    [
     "in",
     {
      "fact": "target"
     },
     [
      "wishbone",
      "unsloth"
     ]
    ]
   ],
   "set": {
    "script.gradient_checkpointing": "unsloth"
   },
   "reason": "The run was out of memory, so layers are recomputed, and their inputs are kept in host memory."
  },
  {
   "id": "memory-checkpointing-trl",
   "kind": "setting",
   "source": "checkpointing",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "out_of_memory"
    ],
    {
     "fact": "has_gpu"
    },
    [
     "=",
     {
      "fact": "target"
     },
     "trl"
    ]
   ],
   "set": {
    "script.gradient_checkpointing": true
   },
   "reason": "The run was out of memory, so layers are recomputed instead of kept."
  },
  {
   "id": "memory-cpu",
   "kind": "setting",
   "source": "wishbone-log",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "out_of_memory"
    ],
    [
     "not",
     {
      "fact": "has_gpu"
     }
    ]
   ],
   "set": {
    "training.activations": "recompute",
    "training.token_budget": 512
   },
   "reason": "Rows of half the usual 1024 tokens, recomputed, lower the peak on a CPU and cost little time there."
  },
  {
   "id": "optimizer",
   "when": true,
   "kind": "setting",
   "source": "zephyr",
   "set": {
    "training.optimizer": "adamw_torch"
   },
   "reason": "The published learning rates were found with AdamW."
  },
  {
   "id": "optimizer-8bit",
   "kind": "setting",
   "source": "8bit-optimizers",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "=",
     {
      "fact": "method"
     },
     "full"
    ],
    [
     "any",
     [
      "has",
      {
       "fact": "symptoms"
      },
      "out_of_memory"
     ],
     [
      "<",
      {
       "setting": "script.room_gib"
      },
      {
       "fact": "least_full_gib"
      }
     ]
    ]
   ],
   "set": {
    "training.optimizer": "paged_adamw_8bit"
   },
   "reason": "Adam's two moments in 8 bits take 2 bytes per weight instead of 8, with the same results, and move to host memory when the GPU is full."
  },
  {
   "id": "length",
   "when": true,
   "kind": "setting",
   "source": "wishbone-design",
   "set": {
    "data.max_length": [
     "max",
     512,
     [
      "*",
      256,
      [
       "floor",
       [
        "/",
        [
         "+",
         {
          "fact": "longest_tokens"
         },
         255
        ],
        256
       ]
      ]
     ]
    ]
   },
   "reason": "The longest sequence has {longest_tokens} tokens, so nothing is cut. An answer without its end teaches the model not to stop."
  },
  {
   "id": "held-out",
   "kind": "setting",
   "source": "wishbone-design",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<=",
     20,
     {
      "fact": "pairs"
     }
    ]
   ],
   "set": {
    "data.eval_fraction": 0.1
   },
   "reason": "A tenth of the {pairs} pairs is held out: only pairs that were not trained on show whether the model learns or memorizes."
  },
  {
   "id": "held-out-less",
   "kind": "setting",
   "source": "wishbone-design",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<=",
     1000,
     {
      "fact": "pairs"
     }
    ]
   ],
   "set": {
    "data.eval_fraction": 0.05
   },
   "reason": "One pair in 20 is held out: only pairs that were not trained on show whether the model learns or memorizes."
  },
  {
   "id": "held-out-least",
   "kind": "setting",
   "source": "wishbone-design",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<=",
     20000,
     {
      "fact": "pairs"
     }
    ]
   ],
   "set": {
    "data.eval_fraction": 0.01
   },
   "reason": "Of {pairs} pairs, one in 100 is enough to measure on, and evaluations stay short."
  },
  {
   "id": "memory-length",
   "kind": "setting",
   "source": "wishbone-benchmarks",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "out_of_memory"
    ],
    [
     "<",
     [
      "max",
      512,
      [
       "*",
       512,
       [
        "floor",
        [
         "/",
         [
          "+",
          [
           "+",
           {
            "fact": "prompt_tokens"
           },
           {
            "fact": "completion_tokens"
           }
          ],
          255
         ],
         256
        ]
       ]
      ]
     ],
     {
      "setting": "data.max_length"
     }
    ]
   ],
   "set": {
    "data.max_length": [
     "max",
     512,
     [
      "*",
      512,
      [
       "floor",
       [
        "/",
        [
         "+",
         [
          "+",
          {
           "fact": "prompt_tokens"
          },
          {
           "fact": "completion_tokens"
          }
         ],
         255
        ],
        256
       ]
      ]
     ]
    ]
   },
   "reason": "The longest pairs set the peak of memory; twice the median sequence ({prompt_tokens} + {completion_tokens} tokens) leaves most pairs whole."
  },
  {
   "id": "loss",
   "when": true,
   "kind": "setting",
   "source": "dpo",
   "set": {
    "preference.loss": {
     "list": [
      "sigmoid"
     ]
    },
    "script.base_loss": "sigmoid",
    "script.anchor": false,
    "preference.beta": 0.1
   },
   "reason": "DPO with beta 0.1, as in the paper's experiments, is the first thing to try."
  },
  {
   "id": "noisy-labels",
   "kind": "setting",
   "source": "robust-dpo",
   "when": {
    "fact": "noisy_labels"
   },
   "set": {
    "preference.loss": {
     "list": [
      "robust"
     ]
    },
    "script.base_loss": "robust",
    "preference.label_smoothing": 0.1
   },
   "reason": "If a tenth of the labels is swapped, the robust loss equals DPO's on clean labels in expectation; set the share that your labels have."
  },
  {
   "id": "length-normalized",
   "kind": "setting",
   "source": "tulu3",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "length_growth"
    ],
    [
     "not",
     {
      "fact": "noisy_labels"
     }
    ]
   ],
   "set": {
    "preference.loss": {
     "list": [
      "sigmoid_norm"
     ]
    },
    "script.base_loss": "sigmoid_norm",
    "preference.beta": 5
   },
   "reason": "With scores per token, length earns nothing. Such scores are small, so beta is 5."
  },
  {
   "id": "length-ld",
   "kind": "setting",
   "source": "ld-dpo",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "length_growth"
    ],
    {
     "fact": "noisy_labels"
    }
   ],
   "set": {
    "preference.ld_alpha": 0.5
   },
   "reason": "Tokens beyond the length of the shorter answer count half (LD-DPO); this can be combined with the robust loss."
  },
  {
   "id": "rate-adapter",
   "kind": "setting",
   "source": "trl-dpo",
   "when": [
    "=",
    {
     "fact": "method"
    },
    "lora"
   ],
   "set": {
    "training.learning_rate": 5e-06,
    "script.usual_rate": 5e-06
   },
   "reason": "Adapters need ten times the rate of full fine-tuning: 5e-6 to 1e-5 with a preference loss, starting at the low end."
  },
  {
   "id": "rate-adapter-few-steps",
   "kind": "setting",
   "source": "wishbone-log",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<",
     {
      "fact": "pairs"
     },
     1600
    ]
   ],
   "set": {
    "training.learning_rate": 1e-05
   },
   "reason": "So few pairs ({pairs}) make few steps, and at 5e-6 adapters hardly change in so few."
  },
  {
   "id": "rate-full",
   "kind": "setting",
   "source": "zephyr",
   "when": [
    "=",
    {
     "fact": "method"
    },
    "full"
   ],
   "set": {
    "training.learning_rate": 5e-07,
    "script.usual_rate": 5e-07
   },
   "reason": "Zephyr and Tulu 3 trained all weights of 7B and 8B models at 5e-7."
  },
  {
   "id": "rate-given",
   "kind": "setting",
   "source": "wishbone-design",
   "when": [
    "not",
    [
     "=",
     {
      "fact": "learning_rate"
     },
     null
    ]
   ],
   "set": {
    "training.learning_rate": {
     "fact": "learning_rate"
    }
   },
   "reason": "As asked."
  },
  {
   "id": "epochs",
   "when": true,
   "kind": "setting",
   "source": "tulu3",
   "set": {
    "training.epochs": 1
   },
   "reason": "One pass, as in Tulu 3: preference losses soon overfit pairs that they see again."
  },
  {
   "id": "epochs-few-pairs",
   "kind": "setting",
   "source": "zephyr",
   "when": [
    "all",
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<",
     {
      "fact": "pairs"
     },
     1600
    ]
   ],
   "set": {
    "training.epochs": 3
   },
   "reason": "So few pairs ({pairs}) make few steps. Three passes, as for Zephyr, overfit the pairs but still improved the model."
  },
  {
   "id": "schedule",
   "when": true,
   "kind": "setting",
   "source": "zephyr",
   "set": {
    "training.warmup_ratio": 0.1,
    "training.scheduler": "linear",
    "training.max_grad_norm": 1
   },
   "reason": "The rate rises for a tenth of the steps, then falls linearly."
  },
  {
   "id": "batch-16",
   "when": true,
   "kind": "setting",
   "source": "trl-dpo",
   "set": {
    "script.pairs_a_step": 16
   },
   "reason": "16 pairs per step (2 x 8), as in TRL's own example with adapters."
  },
  {
   "id": "batch-32",
   "kind": "setting",
   "source": "zephyr",
   "when": [
    "all",
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<=",
     5000,
     {
      "fact": "pairs"
     }
    ]
   ],
   "set": {
    "script.pairs_a_step": 32
   },
   "reason": "{pairs} pairs give enough steps of 32 pairs, Zephyr's batch."
  },
  {
   "id": "batch-128",
   "kind": "setting",
   "source": "tulu3",
   "when": [
    "all",
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<=",
     100000,
     {
      "fact": "pairs"
     }
    ]
   ],
   "set": {
    "script.pairs_a_step": 128
   },
   "reason": "{pairs} pairs give enough steps of 128 pairs, Tulu 3's batch."
  },
  {
   "id": "accumulation-8",
   "when": true,
   "kind": "setting",
   "source": "wishbone-design",
   "set": {
    "training.gradient_accumulation": 8,
    "training.batch_size": [
     "max",
     1,
     [
      "floor",
      [
       "/",
       {
        "setting": "script.pairs_a_step"
       },
       [
        "*",
        8,
        {
         "fact": "gpus"
        }
       ]
      ]
     ]
    ]
   },
   "reason": "A step consists of 8 micro-batches per device."
  },
  {
   "id": "accumulation-16",
   "kind": "setting",
   "source": "wishbone-design",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "any",
     [
      "has",
      {
       "fact": "symptoms"
      },
      "out_of_memory"
     ],
     [
      "=",
      {
       "setting": "training.activations"
      },
      "offload"
     ]
    ]
   ],
   "set": {
    "training.gradient_accumulation": 16,
    "training.batch_size": [
     "max",
     1,
     [
      "floor",
      [
       "/",
       {
        "setting": "script.pairs_a_step"
       },
       [
        "*",
        16,
        {
         "fact": "gpus"
        }
       ]
      ]
     ]
    ]
   },
   "reason": "Memory is short, so a step consists of 16 smaller micro-batches per device."
  },
  {
   "id": "accumulation-4",
   "kind": "setting",
   "source": "wishbone-log",
   "when": [
    "all",
    [
     "not",
     [
      "=",
      {
       "fact": "pairs"
      },
      null
     ]
    ],
    [
     "<",
     {
      "fact": "pairs"
     },
     400
    ]
   ],
   "set": {
    "training.gradient_accumulation": [
     "max",
     1,
     [
      "floor",
      [
       "/",
       4,
       {
        "fact": "gpus"
       }
      ]
     ]
    ],
    "training.batch_size": 1
   },
   "reason": "So few pairs ({pairs}) would make few steps of 16, so a step has 4."
  },
  {
   "id": "accumulation-many-gpus",
   "kind": "setting",
   "source": "tulu3",
   "when": [
    "<",
    128,
    [
     "*",
     {
      "setting": "training.batch_size"
     },
     {
      "setting": "training.gradient_accumulation"
     },
     {
      "fact": "gpus"
     }
    ]
   ],
   "set": {
    "training.batch_size": 1,
    "training.gradient_accumulation": [
     "max",
     1,
     [
      "floor",
      [
       "/",
       128,
       {
        "fact": "gpus"
       }
      ]
     ]
    ]
   },
   "reason": "With {gpus} GPUs a step would have more than 128 pairs, more than the published rates were found with."
  },
  {
   "id": "batch",
   "when": true,
   "kind": "setting",
   "source": "wishbone-design",
   "set": {
    "training.batch_size": {
     "setting": "training.batch_size"
    },
    "training.gradient_accumulation": {
     "setting": "training.gradient_accumulation"
    },
    "script.pairs_a_step": [
     "*",
     {
      "setting": "training.batch_size"
     },
     {
      "setting": "training.gradient_accumulation"
     },
     {
      "fact": "gpus"
     }
    ]
   },
   "reason": "Batch {training.batch_size} x accumulation {training.gradient_accumulation} x devices {gpus} = {script.pairs_a_step} pairs per step; 16 to 128 is common, and fewer where pairs are few."
  },
  {
   "id": "collapse-rate",
   "kind": "setting",
   "source": "trl-dpo",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "collapse"
   ],
   "set": {
    "training.learning_rate": [
     "min",
     {
      "setting": "training.learning_rate"
     },
     {
      "setting": "script.usual_rate"
     }
    ],
    "training.epochs": 1
   },
   "reason": "Collapse mostly comes from too many steps at too high a rate, so the rate is at most {script.usual_rate}, for one pass."
  },
  {
   "id": "collapse-rate-again",
   "kind": "setting",
   "source": "wishbone-log",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "collapse"
    ],
    [
     "not",
     [
      "=",
      {
       "fact": "learning_rate"
      },
      null
     ]
    ],
    [
     "<=",
     {
      "fact": "learning_rate"
     },
     {
      "setting": "script.usual_rate"
     }
    ]
   ],
   "set": {
    "training.learning_rate": [
     "/",
     {
      "fact": "learning_rate"
     },
     2
    ]
   },
   "reason": "The run collapsed at {learning_rate}, so the rate is halved."
  },
  {
   "id": "collapse-beta",
   "kind": "setting",
   "source": "dpo",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "collapse"
   ],
   "set": {
    "preference.beta": [
     "*",
     2,
     {
      "setting": "preference.beta"
     }
    ]
   },
   "reason": "beta is the price of moving away from the reference; doubled, it keeps the model closer."
  },
  {
   "id": "collapse-anchor",
   "kind": "setting",
   "source": "rpo",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "collapse"
   ],
   "set": {
    "script.anchor": true
   },
   "reason": "Adding the likelihood of the chosen answers (RPO, alpha 1) keeps them from falling with the rejected ones."
  },
  {
   "id": "abilities-rate",
   "kind": "setting",
   "source": "lora-forgets-less",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "lost_abilities"
   ],
   "set": {
    "training.learning_rate": [
     "/",
     {
      "setting": "training.learning_rate"
     },
     2
    ],
    "training.epochs": 1
   },
   "reason": "Forgetting grows with rate and steps, so the rate is halved, for one pass."
  },
  {
   "id": "abilities-beta",
   "kind": "setting",
   "source": "dpo",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "lost_abilities"
   ],
   "set": {
    "preference.beta": [
     "*",
     2,
     {
      "setting": "preference.beta"
     }
    ]
   },
   "reason": "beta is the price of moving away from the reference, which still has the abilities, so it is doubled."
  },
  {
   "id": "abilities-rank",
   "kind": "setting",
   "source": "lora-forgets-less",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "lost_abilities"
    ],
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ]
   ],
   "set": {
    "adapter.rank": 8,
    "adapter.alpha": 8
   },
   "reason": "Adapters of lower rank change less and forget less, so the rank is halved."
  },
  {
   "id": "repetition",
   "kind": "setting",
   "source": "likelihood-displacement",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "repetition"
   ],
   "set": {
    "script.anchor": true,
    "training.epochs": 1,
    "training.learning_rate": [
     "min",
     {
      "setting": "training.learning_rate"
     },
     {
      "setting": "script.usual_rate"
     }
    ]
   },
   "reason": "Probability that the chosen answers lose goes to other text, so their likelihood is added, for one pass at {script.usual_rate} at most. Check that chosen answers end and are not cut."
  },
  {
   "id": "chosen-falling",
   "kind": "setting",
   "source": "rpo",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "chosen_falling"
   ],
   "set": {
    "script.anchor": true
   },
   "reason": "DPO only sees differences, so both rewards may fall; adding the likelihood of the chosen answers (RPO, alpha 1) prevents that."
  },
  {
   "id": "chosen-falling-dpop",
   "kind": "setting",
   "source": "dpop",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "chosen_falling"
    ],
    [
     "has",
     {
      "fact": "symptoms"
     },
     "collapse"
    ],
    [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    [
     "not",
     {
      "fact": "noisy_labels"
     }
    ],
    [
     "not",
     [
      "has",
      {
       "fact": "symptoms"
      },
      "length_growth"
     ]
    ]
   ],
   "set": {
    "preference.loss": {
     "list": [
      "dpop"
     ]
    },
    "script.base_loss": "dpop",
    "script.anchor": false,
    "preference.beta": 0.3,
    "preference.dpop_lambda": 50
   },
   "reason": "DPOP penalizes each chosen answer that falls below the reference, here with the paper's lambda 50 and beta 0.3."
  },
  {
   "id": "no-learning",
   "kind": "setting",
   "source": "trl-dpo",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "no_learning"
    ],
    [
     "<",
     {
      "setting": "training.learning_rate"
     },
     2e-05
    ],
    [
     "not",
     [
      "any",
      [
       "has",
       {
        "fact": "symptoms"
       },
       "collapse"
      ],
      [
       "has",
       {
        "fact": "symptoms"
       },
       "lost_abilities"
      ],
      [
       "has",
       {
        "fact": "symptoms"
       },
       "repetition"
      ],
      [
       "has",
       {
        "fact": "symptoms"
       },
       "nan"
      ]
     ]
    ]
   ],
   "set": {
    "training.learning_rate": [
     "max",
     5e-07,
     [
      "min",
      2e-05,
      [
       "*",
       2,
       {
        "setting": "training.learning_rate"
       }
      ]
     ]
    ]
   },
   "reason": "Nothing was learned, so the rate is doubled, within 5e-7 and 2e-5."
  },
  {
   "id": "nan-rate",
   "kind": "setting",
   "source": "qlora",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "nan"
   ],
   "set": {
    "training.learning_rate": [
     "/",
     {
      "setting": "training.learning_rate"
     },
     2
    ],
    "training.max_grad_norm": 0.3
   },
   "reason": "A NaN follows a step that was too large, so the rate is halved and gradients are clipped at norm 0.3, as in QLoRA."
  },
  {
   "id": "loss-anchored",
   "kind": "setting",
   "source": "rpo",
   "when": {
    "setting": "script.anchor"
   },
   "set": {
    "preference.loss": {
     "list": [
      {
       "setting": "script.base_loss"
      },
      "sft"
     ]
    },
    "preference.loss_weights": {
     "list": [
      1,
      1
     ]
    }
   },
   "reason": "The likelihood of the chosen answers is added with weight 1, as in RPO."
  },
  {
   "id": "warn-rate-adapter",
   "kind": "warning",
   "source": "wishbone-log",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "<=",
     5e-05,
     {
      "setting": "training.learning_rate"
     }
    ]
   ],
   "set": {},
   "reason": "{training.learning_rate} is a rate for supervised fine-tuning, at which preference losses collapse; begin adapters at 5e-6 to 1e-5."
  },
  {
   "id": "warn-rate-full",
   "kind": "warning",
   "source": "zephyr",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "method"
     },
     "full"
    ],
    [
     "<=",
     5e-06,
     {
      "setting": "training.learning_rate"
     }
    ]
   ],
   "set": {},
   "reason": "{training.learning_rate} is a rate for supervised fine-tuning or for adapters; train all weights near 5e-7 with a preference loss."
  },
  {
   "id": "warn-full-memory",
   "kind": "warning",
   "source": "wishbone-benchmarks",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "=",
     {
      "fact": "method"
     },
     "full"
    ],
    [
     "<",
     {
      "setting": "script.room_gib"
     },
     {
      "fact": "least_full_gib"
     }
    ]
   ],
   "set": {},
   "reason": "Training every weight with AdamW needs {least_full_gib} GiB, and {script.room_gib} may be used. AdamW in 8 bits needs somewhat less; adapters (method lora) need {least_nf4_gib} in NF4, {least_bf16_gib} in bfloat16."
  },
  {
   "id": "warn-memory",
   "kind": "warning",
   "source": "wishbone-benchmarks",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "=",
     {
      "fact": "method"
     },
     "lora"
    ],
    [
     "<",
     {
      "setting": "script.room_gib"
     },
     {
      "fact": "least_nf4_gib"
     }
    ]
   ],
   "set": {},
   "reason": "In NF4, with everything recomputed, the longest pair needs {least_nf4_gib} GiB, and {script.room_gib} may be used. Offloading may be enough for a long pair; else take shorter pairs, a smaller model or a larger GPU."
  },
  {
   "id": "warn-other-memory",
   "kind": "warning",
   "source": "wishbone-benchmarks",
   "when": [
    "all",
    {
     "fact": "has_gpu"
    },
    [
     "in",
     {
      "fact": "target"
     },
     [
      "trl",
      "unsloth"
     ]
    ]
   ],
   "set": {},
   "reason": "Memory is estimated for Wishbone's rows. Padded batches take more (8 pairs with an 8B model in NF4: Unsloth 14.3 GiB, Wishbone 9.1), so leave some free."
  },
  {
   "id": "warn-unsloth-gpu",
   "kind": "warning",
   "source": "unsloth-docs",
   "when": [
    "all",
    [
     "=",
     {
      "fact": "target"
     },
     "unsloth"
    ],
    [
     "not",
     {
      "fact": "has_gpu"
     }
    ]
   ],
   "set": {},
   "reason": "Unsloth needs a GPU, and there is none; target wishbone also trains on a CPU."
  },
  {
   "id": "warn-no-learning",
   "kind": "warning",
   "source": "likelihood-displacement",
   "when": [
    "has",
    {
     "fact": "symptoms"
    },
    "no_learning"
   ],
   "set": {},
   "reason": "Look at rewards/accuracies first: if it rises above 0.5 the model learns, and its answers change later. Pairs whose answers hardly differ teach little at any rate."
  },
  {
   "id": "warn-contradiction",
   "kind": "warning",
   "source": "wishbone-design",
   "when": [
    "all",
    [
     "has",
     {
      "fact": "symptoms"
     },
     "no_learning"
    ],
    [
     "any",
     [
      "has",
      {
       "fact": "symptoms"
      },
      "collapse"
     ],
     [
      "has",
      {
       "fact": "symptoms"
      },
      "lost_abilities"
     ],
     [
      "has",
      {
       "fact": "symptoms"
      },
      "repetition"
     ],
     [
      "has",
      {
       "fact": "symptoms"
      },
      "nan"
     ]
    ]
   ],
   "set": {},
   "reason": "The symptom no_learning asks for a higher rate, the others for a lower one; damage counts more, so the rate was lowered."
  }
 ]
};
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, rules };
  else module.exports = { rules };
}

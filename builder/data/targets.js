"use strict";
/* Templates of what is written for each target. Written by scripts/generate_builder_data.py. */
{
  const targets = {
 "documents": {
  "wishbone": {
   "head": "Written by wishbone init; each reason is above the settings that it decided. To train: wishbone train FILE",
   "refuse": [],
   "entries": [
    {
     "section": "model"
    },
    {
     "section": "adapter"
    },
    {
     "section": "data"
    },
    {
     "section": "preference"
    },
    {
     "section": "training"
    }
   ]
  },
  "trl": {
   "head": "Written by wishbone init for TRL's command line; each reason is above the settings that it decided. To train: trl dpo --config FILE",
   "refuse": [
    {
     "when": [
      "not",
      [
       "=",
       {
        "setting": "model.reference"
       },
       null
      ]
     ],
     "problem": "TRL's command line cannot load a separate reference model; choose --format python, or --reference none"
    }
   ],
   "entries": [
    {
     "name": "model_name_or_path",
     "value": {
      "setting": "model.name"
     }
    },
    {
     "name": "dtype",
     "value": {
      "setting": "model.dtype"
     },
     "reason": "model.dtype"
    },
    {
     "name": "load_in_4bit",
     "value": true,
     "reason": "model.quantization",
     "when": [
      "=",
      {
       "setting": "model.quantization"
      },
      "nf4"
     ]
    },
    {
     "name": "bnb_4bit_quant_type",
     "value": "nf4",
     "when": [
      "=",
      {
       "setting": "model.quantization"
      },
      "nf4"
     ]
    },
    {
     "name": "use_bnb_nested_quant",
     "value": true,
     "when": [
      "=",
      {
       "setting": "model.quantization"
      },
      "nf4"
     ]
    },
    {
     "name": "use_peft",
     "value": true,
     "reason": "adapter.method",
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "lora_r",
     "value": {
      "setting": "adapter.rank"
     },
     "reason": "adapter.rank",
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "lora_alpha",
     "value": {
      "setting": "adapter.alpha"
     },
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "lora_dropout",
     "value": {
      "setting": "adapter.dropout"
     },
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "lora_target_modules",
     "value": {
      "setting": "adapter.target_modules"
     },
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "datasets",
     "value": {
      "list": [
       {
        "map": {
         "path": {
          "setting": "data.train"
         },
         "split": "train"
        }
       }
      ]
     },
     "when": [
      "=",
      {
       "fact": "data_format"
      },
      "hub"
     ]
    },
    {
     "name": "datasets",
     "value": {
      "list": [
       {
        "map": {
         "path": {
          "fact": "data_format"
         },
         "data_files": {
          "setting": "data.train"
         },
         "split": "train"
        }
       }
      ]
     },
     "when": [
      "not",
      [
       "=",
       {
        "fact": "data_format"
       },
       "hub"
      ]
     ]
    },
    {
     "name": "max_length",
     "value": {
      "setting": "data.max_length"
     },
     "reason": "data.max_length"
    },
    {
     "name": "loss_type",
     "value": {
      "setting": "preference.loss"
     },
     "reason": "script.base_loss"
    },
    {
     "name": "loss_weights",
     "value": {
      "setting": "preference.loss_weights"
     },
     "reason": "script.anchor",
     "when": {
      "setting": "script.anchor"
     }
    },
    {
     "name": "beta",
     "value": {
      "setting": "preference.beta"
     },
     "reason": "preference.beta"
    },
    {
     "name": "label_smoothing",
     "value": {
      "setting": "preference.label_smoothing"
     },
     "when": [
      "=",
      {
       "setting": "script.base_loss"
      },
      "robust"
     ]
    },
    {
     "name": "ld_alpha",
     "value": {
      "setting": "preference.ld_alpha"
     },
     "reason": "preference.ld_alpha",
     "when": [
      "all",
      {
       "fact": "noisy_labels"
      },
      [
       "has",
       {
        "fact": "symptoms"
       },
       "length_growth"
      ]
     ]
    },
    {
     "name": "precompute_ref_log_probs",
     "value": true,
     "reason": "script.precompute_reference",
     "when": {
      "setting": "script.precompute_reference"
     }
    },
    {
     "name": "learning_rate",
     "value": {
      "setting": "training.learning_rate"
     },
     "reason": "training.learning_rate"
    },
    {
     "name": "num_train_epochs",
     "value": {
      "setting": "training.epochs"
     },
     "reason": "training.epochs"
    },
    {
     "name": "per_device_train_batch_size",
     "value": {
      "setting": "training.batch_size"
     },
     "reason": "script.pairs_a_step"
    },
    {
     "name": "gradient_accumulation_steps",
     "value": {
      "setting": "training.gradient_accumulation"
     }
    },
    {
     "name": "warmup_steps",
     "value": {
      "setting": "training.warmup_ratio"
     },
     "reason": "training.warmup_ratio"
    },
    {
     "name": "lr_scheduler_type",
     "value": {
      "setting": "training.scheduler"
     }
    },
    {
     "name": "max_grad_norm",
     "value": {
      "setting": "training.max_grad_norm"
     },
     "reason": "training.max_grad_norm"
    },
    {
     "name": "optim",
     "value": {
      "setting": "training.optimizer"
     },
     "reason": "training.optimizer"
    },
    {
     "name": "gradient_checkpointing",
     "value": {
      "setting": "script.gradient_checkpointing"
     },
     "reason": "script.gradient_checkpointing"
    },
    {
     "name": "bf16",
     "value": true,
     "when": [
      "=",
      {
       "setting": "model.dtype"
      },
      "bfloat16"
     ]
    },
    {
     "name": "bf16",
     "value": false,
     "when": [
      "=",
      {
       "setting": "model.dtype"
      },
      "float32"
     ]
    },
    {
     "name": "fp16",
     "value": true,
     "when": [
      "=",
      {
       "setting": "model.dtype"
      },
      "float16"
     ]
    },
    {
     "name": "logging_steps",
     "value": 1
    },
    {
     "name": "output_dir",
     "value": {
      "setting": "script.output_dir"
     }
    }
   ]
  },
  "unsloth": {
   "head": "Written by wishbone init for Unsloth: the arguments of FastLanguageModel.from_pretrained, of get_peft_model and of trl.DPOConfig; each reason is above the settings that it decided.",
   "refuse": [],
   "entries": [
    {
     "name": "from_pretrained.model_name",
     "value": {
      "setting": "model.name"
     }
    },
    {
     "name": "from_pretrained.max_seq_length",
     "value": {
      "setting": "data.max_length"
     },
     "reason": "data.max_length"
    },
    {
     "name": "from_pretrained.dtype",
     "value": "float32",
     "reason": "model.dtype",
     "when": [
      "all",
      {
       "fact": "has_gpu"
      },
      [
       "=",
       {
        "setting": "model.dtype"
       },
       "float32"
      ]
     ]
    },
    {
     "name": "from_pretrained.load_in_4bit",
     "value": true,
     "reason": "model.quantization",
     "when": [
      "=",
      {
       "setting": "model.quantization"
      },
      "nf4"
     ]
    },
    {
     "name": "from_pretrained.load_in_4bit",
     "value": false,
     "when": [
      "not",
      [
       "=",
       {
        "setting": "model.quantization"
       },
       "nf4"
      ]
     ]
    },
    {
     "name": "from_pretrained.full_finetuning",
     "value": true,
     "reason": "adapter.method",
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "full"
     ]
    },
    {
     "name": "from_pretrained.use_gradient_checkpointing",
     "value": {
      "setting": "script.gradient_checkpointing"
     },
     "reason": "script.gradient_checkpointing",
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "full"
     ]
    },
    {
     "name": "reference.model_name",
     "value": {
      "setting": "model.reference"
     },
     "reason": "model.reference",
     "when": [
      "not",
      [
       "=",
       {
        "setting": "model.reference"
       },
       null
      ]
     ]
    },
    {
     "name": "get_peft_model.r",
     "value": {
      "setting": "adapter.rank"
     },
     "reason": "adapter.rank",
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "get_peft_model.lora_alpha",
     "value": {
      "setting": "adapter.alpha"
     },
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "get_peft_model.lora_dropout",
     "value": {
      "setting": "adapter.dropout"
     },
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "get_peft_model.target_modules",
     "value": {
      "list": [
       "q_proj",
       "k_proj",
       "v_proj",
       "o_proj",
       "gate_proj",
       "up_proj",
       "down_proj"
      ]
     },
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "get_peft_model.use_gradient_checkpointing",
     "value": {
      "setting": "script.gradient_checkpointing"
     },
     "reason": "script.gradient_checkpointing",
     "when": [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    },
    {
     "name": "load_dataset.path",
     "value": {
      "setting": "data.train"
     },
     "when": [
      "=",
      {
       "fact": "data_format"
      },
      "hub"
     ]
    },
    {
     "name": "load_dataset.path",
     "value": {
      "fact": "data_format"
     },
     "when": [
      "not",
      [
       "=",
       {
        "fact": "data_format"
       },
       "hub"
      ]
     ]
    },
    {
     "name": "load_dataset.data_files",
     "value": {
      "setting": "data.train"
     },
     "when": [
      "not",
      [
       "=",
       {
        "fact": "data_format"
       },
       "hub"
      ]
     ]
    },
    {
     "name": "load_dataset.split",
     "value": "train"
    },
    {
     "name": "DPOConfig.max_length",
     "value": {
      "setting": "data.max_length"
     }
    },
    {
     "name": "DPOConfig.loss_type",
     "value": {
      "setting": "preference.loss"
     },
     "reason": "script.base_loss"
    },
    {
     "name": "DPOConfig.loss_weights",
     "value": {
      "setting": "preference.loss_weights"
     },
     "reason": "script.anchor",
     "when": {
      "setting": "script.anchor"
     }
    },
    {
     "name": "DPOConfig.beta",
     "value": {
      "setting": "preference.beta"
     },
     "reason": "preference.beta"
    },
    {
     "name": "DPOConfig.label_smoothing",
     "value": {
      "setting": "preference.label_smoothing"
     },
     "when": [
      "=",
      {
       "setting": "script.base_loss"
      },
      "robust"
     ]
    },
    {
     "name": "DPOConfig.ld_alpha",
     "value": {
      "setting": "preference.ld_alpha"
     },
     "reason": "preference.ld_alpha",
     "when": [
      "all",
      {
       "fact": "noisy_labels"
      },
      [
       "has",
       {
        "fact": "symptoms"
       },
       "length_growth"
      ]
     ]
    },
    {
     "name": "DPOConfig.precompute_ref_log_probs",
     "value": true,
     "reason": "script.precompute_reference",
     "when": {
      "setting": "script.precompute_reference"
     }
    },
    {
     "name": "DPOConfig.learning_rate",
     "value": {
      "setting": "training.learning_rate"
     },
     "reason": "training.learning_rate"
    },
    {
     "name": "DPOConfig.num_train_epochs",
     "value": {
      "setting": "training.epochs"
     },
     "reason": "training.epochs"
    },
    {
     "name": "DPOConfig.per_device_train_batch_size",
     "value": {
      "setting": "training.batch_size"
     },
     "reason": "script.pairs_a_step"
    },
    {
     "name": "DPOConfig.gradient_accumulation_steps",
     "value": {
      "setting": "training.gradient_accumulation"
     }
    },
    {
     "name": "DPOConfig.warmup_steps",
     "value": {
      "setting": "training.warmup_ratio"
     },
     "reason": "training.warmup_ratio"
    },
    {
     "name": "DPOConfig.lr_scheduler_type",
     "value": {
      "setting": "training.scheduler"
     }
    },
    {
     "name": "DPOConfig.max_grad_norm",
     "value": {
      "setting": "training.max_grad_norm"
     },
     "reason": "training.max_grad_norm"
    },
    {
     "name": "DPOConfig.optim",
     "value": {
      "setting": "training.optimizer"
     },
     "reason": "training.optimizer"
    },
    {
     "name": "DPOConfig.logging_steps",
     "value": 1
    },
    {
     "name": "DPOConfig.output_dir",
     "value": {
      "setting": "script.output_dir"
     }
    }
   ]
  }
 },
 "scripts": {
  "wishbone": [
   "fast-head",
   "data-import",
   "fast-model",
   "fast-adapter",
   "fast-reference",
   "data",
   "trainer",
   "train"
  ],
  "trl": [
   "trl-head",
   "trl-model",
   "trl-reference",
   "data",
   "trainer",
   "train"
  ],
  "unsloth": [
   "fast-head",
   "data-import",
   "fast-model",
   "fast-adapter",
   "fast-reference",
   "data",
   "trainer",
   "train"
  ]
 },
 "blocks": {
  "fast-head": [
   {
    "when": [
     "=",
     {
      "fact": "target"
     },
     "wishbone"
    ],
    "lines": [
     "# Direct preference optimization with Wishbone (the package wishbone-dpo), written by wishbone init.",
     {
      "include": "several-gpus"
     },
     "from wishbone import FastLanguageModel, PatchDPOTrainer",
     "",
     "PatchDPOTrainer()  # from here on trl's DPOTrainer and DPOConfig are Wishbone's",
     ""
    ]
   },
   {
    "when": [
     "=",
     {
      "fact": "target"
     },
     "unsloth"
    ],
    "lines": [
     "# Direct preference optimization with Unsloth (pip install unsloth), written by wishbone init.",
     {
      "include": "several-gpus"
     },
     "from unsloth import FastLanguageModel, PatchDPOTrainer",
     "",
     "PatchDPOTrainer()  # before trl is imported",
     ""
    ]
   }
  ],
  "several-gpus": [
   {
    "when": [
     "<",
     1,
     {
      "fact": "gpus"
     }
    ],
    "lines": [
     "# On {gpus} GPUs: accelerate launch --num_processes {gpus} FILE"
    ]
   }
  ],
  "data-import": [
   {
    "when": [
     "all",
     {
      "fact": "has_gpu"
     },
     [
      "=",
      {
       "setting": "model.dtype"
      },
      "float32"
     ]
    ],
    "lines": [
     "import torch"
    ]
   },
   "from datasets import load_dataset",
   "from trl import DPOConfig, DPOTrainer",
   ""
  ],
  "fast-model": [
   "model, tokenizer = FastLanguageModel.from_pretrained(",
   "    model_name={model.name},",
   "    max_seq_length={data.max_length},",
   {
    "when": [
     "all",
     {
      "fact": "has_gpu"
     },
     [
      "=",
      {
       "setting": "model.dtype"
      },
      "float32"
     ]
    ],
    "lines": [
     {
      "reason": "model.dtype",
      "indent": 4
     },
     "    dtype=torch.float32,"
    ]
   },
   {
    "include": "fast-bits"
   },
   {
    "when": [
     "=",
     {
      "setting": "adapter.method"
     },
     "full"
    ],
    "lines": [
     {
      "reason": "adapter.method",
      "indent": 4
     },
     "    full_finetuning=True,",
     {
      "reason": "script.gradient_checkpointing",
      "indent": 4
     },
     "    use_gradient_checkpointing={script.gradient_checkpointing},"
    ]
   },
   ")"
  ],
  "fast-bits": [
   {
    "when": [
     "in",
     {
      "setting": "model.quantization"
     },
     [
      "nf4",
      "fp8",
      "int8"
     ]
    ],
    "lines": [
     {
      "reason": "model.quantization",
      "indent": 4
     }
    ]
   },
   {
    "include": "load-bits"
   }
  ],
  "load-bits": [
   {
    "when": [
     "=",
     {
      "setting": "model.quantization"
     },
     "nf4"
    ],
    "lines": [
     "    load_in_4bit=True,"
    ]
   },
   {
    "when": [
     "not",
     [
      "=",
      {
       "setting": "model.quantization"
      },
      "nf4"
     ]
    ],
    "lines": [
     "    load_in_4bit=False,"
    ]
   },
   {
    "when": [
     "=",
     {
      "setting": "model.quantization"
     },
     "fp8"
    ],
    "lines": [
     "    load_in_fp8=True,"
    ]
   },
   {
    "when": [
     "=",
     {
      "setting": "model.quantization"
     },
     "int8"
    ],
    "lines": [
     "    load_in_rotated_int8=True,"
    ]
   }
  ],
  "fast-adapter": [
   {
    "when": [
     "=",
     {
      "setting": "adapter.method"
     },
     "lora"
    ],
    "lines": [
     "model = FastLanguageModel.get_peft_model(",
     "    model,",
     {
      "reason": "adapter.rank",
      "indent": 4
     },
     "    r={adapter.rank},",
     "    lora_alpha={adapter.alpha},",
     "    lora_dropout={adapter.dropout},",
     {
      "when": [
       "=",
       {
        "fact": "target"
       },
       "wishbone"
      ],
      "lines": [
       "    target_modules={adapter.target_modules},"
      ]
     },
     {
      "when": [
       "=",
       {
        "fact": "target"
       },
       "unsloth"
      ],
      "lines": [
       "    target_modules=[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"],"
      ]
     },
     {
      "reason": "script.gradient_checkpointing",
      "indent": 4
     },
     "    use_gradient_checkpointing={script.gradient_checkpointing},",
     ")"
    ]
   }
  ],
  "fast-reference": [
   {
    "when": [
     "not",
     [
      "=",
      {
       "setting": "model.reference"
      },
      null
     ]
    ],
    "lines": [
     "reference, _ = FastLanguageModel.from_pretrained(",
     "    model_name={model.reference},",
     "    max_seq_length={data.max_length},",
     {
      "when": [
       "all",
       {
        "fact": "has_gpu"
       },
       [
        "=",
        {
         "setting": "model.dtype"
        },
        "float32"
       ]
      ],
      "lines": [
       "    dtype=torch.float32,"
      ]
     },
     {
      "include": "load-bits"
     },
     ")"
    ]
   }
  ],
  "trl-head": [
   "# Direct preference optimization with TRL (pip install trl peft), written by wishbone init.",
   {
    "include": "several-gpus"
   },
   {
    "when": [
     "=",
     {
      "setting": "model.quantization"
     },
     "nf4"
    ],
    "lines": [
     "# 4-bit weights need bitsandbytes as well: pip install bitsandbytes"
    ]
   },
   "from datasets import load_dataset",
   {
    "when": [
     "=",
     {
      "setting": "adapter.method"
     },
     "lora"
    ],
    "lines": [
     "from peft import LoraConfig"
    ]
   },
   {
    "when": [
     "=",
     {
      "setting": "model.quantization"
     },
     "nf4"
    ],
    "lines": [
     "from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig"
    ]
   },
   {
    "when": [
     "not",
     [
      "=",
      {
       "setting": "model.quantization"
      },
      "nf4"
     ]
    ],
    "lines": [
     "from transformers import AutoModelForCausalLM, AutoTokenizer"
    ]
   },
   "from trl import DPOConfig, DPOTrainer",
   ""
  ],
  "trl-model": [
   {
    "when": [
     "=",
     {
      "setting": "model.quantization"
     },
     "nf4"
    ],
    "lines": [
     {
      "reason": "model.quantization",
      "indent": 0
     },
     "four_bits = BitsAndBytesConfig(",
     "    load_in_4bit=True,",
     "    bnb_4bit_quant_type=\"nf4\",",
     "    bnb_4bit_use_double_quant=True,",
     "    bnb_4bit_compute_dtype={model.dtype},",
     ")"
    ]
   },
   "model = AutoModelForCausalLM.from_pretrained(",
   "    {model.name},",
   {
    "reason": "model.dtype",
    "indent": 4
   },
   "    dtype={model.dtype},",
   {
    "when": [
     "=",
     {
      "setting": "model.quantization"
     },
     "nf4"
    ],
    "lines": [
     "    quantization_config=four_bits,"
    ]
   },
   ")",
   "tokenizer = AutoTokenizer.from_pretrained({model.name})"
  ],
  "trl-reference": [
   {
    "when": [
     "not",
     [
      "=",
      {
       "setting": "model.reference"
      },
      null
     ]
    ],
    "lines": [
     "reference = AutoModelForCausalLM.from_pretrained(",
     "    {model.reference},",
     "    dtype={model.dtype},",
     {
      "when": [
       "=",
       {
        "setting": "model.quantization"
       },
       "nf4"
      ],
      "lines": [
       "    quantization_config=four_bits,"
      ]
     },
     ")"
    ]
   }
  ],
  "data": [
   "",
   "# Each row has prompt, chosen and rejected: texts, or lists of messages.",
   {
    "when": [
     "=",
     {
      "fact": "data_format"
     },
     "hub"
    ],
    "lines": [
     "pairs = load_dataset({data.train}, split=\"train\")"
    ]
   },
   {
    "when": [
     "not",
     [
      "=",
      {
       "fact": "data_format"
      },
      "hub"
     ]
    ],
    "lines": [
     "pairs = load_dataset({data_format}, data_files={data.train}, split=\"train\")"
    ]
   },
   ""
  ],
  "trainer": [
   "trainer = DPOTrainer(",
   "    model=model,",
   {
    "reason": "model.reference",
    "indent": 4
   },
   {
    "when": [
     "=",
     {
      "setting": "model.reference"
     },
     null
    ],
    "lines": [
     "    ref_model=None,"
    ]
   },
   {
    "when": [
     "not",
     [
      "=",
      {
       "setting": "model.reference"
      },
      null
     ]
    ],
    "lines": [
     "    ref_model=reference,"
    ]
   },
   "    args=DPOConfig(",
   "        output_dir={script.output_dir},",
   {
    "reason": "data.max_length",
    "indent": 8
   },
   "        max_length={data.max_length},",
   {
    "when": {
     "setting": "script.precompute_reference"
    },
    "lines": [
     "        precompute_ref_log_probs=True,"
    ]
   },
   {
    "reason": "script.base_loss",
    "indent": 8
   },
   "        loss_type={preference.loss},",
   {
    "when": {
     "setting": "script.anchor"
    },
    "lines": [
     {
      "reason": "script.anchor",
      "indent": 8
     },
     "        loss_weights={preference.loss_weights},"
    ]
   },
   {
    "reason": "preference.beta",
    "indent": 8
   },
   "        beta={preference.beta},",
   {
    "when": [
     "=",
     {
      "setting": "script.base_loss"
     },
     "robust"
    ],
    "lines": [
     "        label_smoothing={preference.label_smoothing},"
    ]
   },
   {
    "when": [
     "=",
     {
      "setting": "script.base_loss"
     },
     "dpop"
    ],
    "lines": [
     "        dpop_lambda={preference.dpop_lambda},"
    ]
   },
   {
    "when": [
     "all",
     {
      "fact": "noisy_labels"
     },
     [
      "has",
      {
       "fact": "symptoms"
      },
      "length_growth"
     ]
    ],
    "lines": [
     {
      "reason": "preference.ld_alpha",
      "indent": 8
     },
     "        ld_alpha={preference.ld_alpha},"
    ]
   },
   {
    "reason": "training.learning_rate",
    "indent": 8
   },
   "        learning_rate={training.learning_rate},",
   {
    "reason": "training.epochs",
    "indent": 8
   },
   "        num_train_epochs={training.epochs},",
   {
    "reason": "script.pairs_a_step",
    "indent": 8
   },
   "        per_device_train_batch_size={training.batch_size},",
   "        gradient_accumulation_steps={training.gradient_accumulation},",
   {
    "reason": "training.warmup_ratio",
    "indent": 8
   },
   "        warmup_steps={training.warmup_ratio},",
   "        lr_scheduler_type={training.scheduler},",
   {
    "when": [
     "not",
     [
      "=",
      {
       "setting": "training.max_grad_norm"
      },
      1
     ]
    ],
    "lines": [
     {
      "reason": "training.max_grad_norm",
      "indent": 8
     },
     "        max_grad_norm={training.max_grad_norm},"
    ]
   },
   {
    "when": [
     "not",
     [
      "=",
      {
       "setting": "training.optimizer"
      },
      "adamw_torch"
     ]
    ],
    "lines": [
     {
      "reason": "training.optimizer",
      "indent": 8
     },
     "        optim={training.optimizer},"
    ]
   },
   {
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
        "setting": "training.token_budget"
       },
       "auto"
      ]
     ]
    ],
    "lines": [
     {
      "reason": "training.token_budget",
      "indent": 8
     },
     "        token_budget={training.token_budget},"
    ]
   },
   {
    "when": [
     "=",
     {
      "fact": "target"
     },
     "trl"
    ],
    "lines": [
     {
      "reason": "script.gradient_checkpointing",
      "indent": 8
     },
     "        gradient_checkpointing={script.gradient_checkpointing},"
    ]
   },
   {
    "when": [
     "=",
     {
      "setting": "model.dtype"
     },
     "bfloat16"
    ],
    "lines": [
     "        bf16=True,"
    ]
   },
   {
    "when": [
     "=",
     {
      "setting": "model.dtype"
     },
     "float16"
    ],
    "lines": [
     "        fp16=True,"
    ]
   },
   {
    "when": [
     "=",
     {
      "setting": "model.dtype"
     },
     "float32"
    ],
    "lines": [
     "        bf16=False,"
    ]
   },
   "        logging_steps=1,",
   "    ),",
   "    train_dataset=pairs,",
   "    processing_class=tokenizer,",
   {
    "when": [
     "all",
     [
      "=",
      {
       "fact": "target"
      },
      "trl"
     ],
     [
      "=",
      {
       "setting": "adapter.method"
      },
      "lora"
     ]
    ],
    "lines": [
     {
      "reason": "adapter.rank",
      "indent": 4
     },
     "    peft_config=LoraConfig(",
     "        r={adapter.rank},",
     "        lora_alpha={adapter.alpha},",
     "        lora_dropout={adapter.dropout},",
     "        target_modules={adapter.target_modules},",
     "        task_type=\"CAUSAL_LM\",",
     "    ),"
    ]
   },
   ")"
  ],
  "train": [
   "trainer.train()",
   "trainer.save_model({script.output_dir})"
  ]
 }
};
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, targets };
  else module.exports = { targets };
}

"use strict";
/* What a configuration may hold, as JSON Schema. Written by scripts/generate_builder_data.py. */
{
  const runSchema = {
 "$defs": {
  "AdapterConfig": {
   "additionalProperties": false,
   "description": "What is trained: low-rank matrices added to the frozen linear layers (Hu et al. 2021), or every weight.",
   "properties": {
    "method": {
     "default": "lora",
     "description": "lora: low-rank adapters; full: every weight.",
     "enum": [
      "lora",
      "full"
     ],
     "title": "Method",
     "type": "string"
    },
    "rank": {
     "default": 16,
     "description": "Rank of the adapter matrices.",
     "maximum": 16384,
     "minimum": 1,
     "title": "Rank",
     "type": "integer"
    },
    "alpha": {
     "anyOf": [
      {
       "exclusiveMinimum": 0,
       "type": "number"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Adapter output is scaled by alpha / rank; null: alpha = rank.",
     "title": "Alpha"
    },
    "dropout": {
     "default": 0.0,
     "description": "Probability that an adapter input is dropped in training.",
     "exclusiveMaximum": 1,
     "minimum": 0,
     "title": "Dropout",
     "type": "number"
    },
    "target_modules": {
     "anyOf": [
      {
       "const": "all-linear",
       "type": "string"
      },
      {
       "items": {
        "minLength": 1,
        "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
        "type": "string"
       },
       "minItems": 1,
       "type": "array"
      }
     ],
     "default": "all-linear",
     "description": "all-linear (every linear layer but the head), or a list of module name endings.",
     "title": "Target Modules"
    }
   },
   "title": "AdapterConfig",
   "type": "object"
  },
  "DataConfig": {
   "additionalProperties": false,
   "description": "Where the preference pairs come from, and what happens to long and to unusable ones.",
   "properties": {
    "train": {
     "description": "Pairs to learn from: a file, a directory, or a data set id on the hub.",
     "minLength": 1,
     "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
     "title": "Train",
     "type": "string"
    },
    "eval": {
     "anyOf": [
      {
       "minLength": 1,
       "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
       "type": "string"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Pairs to evaluate on: a file, a directory, or a data set id.",
     "title": "Eval"
    },
    "split": {
     "default": "train",
     "description": "Split of data.train to learn from.",
     "minLength": 1,
     "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
     "title": "Split",
     "type": "string"
    },
    "eval_split": {
     "anyOf": [
      {
       "minLength": 1,
       "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
       "type": "string"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Split to evaluate on: of data.eval, or of data.train where data.eval is not set.",
     "title": "Eval Split"
    },
    "eval_fraction": {
     "default": 0.0,
     "description": "Share of the training pairs held out to evaluate on.",
     "exclusiveMaximum": 1,
     "minimum": 0,
     "title": "Eval Fraction",
     "type": "number"
    },
    "max_length": {
     "anyOf": [
      {
       "maximum": 16777216,
       "minimum": 2,
       "type": "integer"
      },
      {
       "type": "null"
      }
     ],
     "default": 1024,
     "description": "Longest prompt plus completion, in tokens; null: no limit.",
     "title": "Max Length"
    },
    "truncation": {
     "default": "keep_start",
     "description": "Which end of a sequence longer than max_length is kept.",
     "enum": [
      "keep_start",
      "keep_end"
     ],
     "title": "Truncation",
     "type": "string"
    },
    "invalid_rows": {
     "default": "refuse",
     "description": "Rows that are not usable pairs: refuse (list them and end) or drop (count them and go on).",
     "enum": [
      "refuse",
      "drop"
     ],
     "title": "Invalid Rows",
     "type": "string"
    },
    "system_prompt": {
     "anyOf": [
      {
       "minLength": 1,
       "type": "string"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "System message for conversations that have none; null: none is added.",
     "title": "System Prompt"
    }
   },
   "required": [
    "train"
   ],
   "title": "DataConfig",
   "type": "object"
  },
  "ModelConfig": {
   "additionalProperties": false,
   "description": "The model that learns, which with its adapter off is also the reference.",
   "properties": {
    "name": {
     "description": "smollm2-135m-instruct (built in), a model id on the hub, a directory or a .gguf file.",
     "minLength": 1,
     "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
     "title": "Name",
     "type": "string"
    },
    "revision": {
     "anyOf": [
      {
       "minLength": 1,
       "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
       "type": "string"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Branch, tag or commit of a model on the hub; null: its default.",
     "title": "Revision"
    },
    "dtype": {
     "default": "auto",
     "description": "Number format of the weights; auto: bfloat16 where the device computes in it, or float32.",
     "enum": [
      "auto",
      "float32",
      "bfloat16",
      "float16"
     ],
     "title": "Dtype",
     "type": "string"
    },
    "quantization": {
     "default": "none",
     "description": "Frozen weights in 4 bits (nf4, through bitsandbytes), in FP8 (fp8: RTX 40, L4, H100, later), or as dtype says (none).",
     "enum": [
      "none",
      "nf4",
      "fp8"
     ],
     "title": "Quantization",
     "type": "string"
    },
    "reference": {
     "anyOf": [
      {
       "minLength": 1,
       "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
       "type": "string"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Another model as the reference, named as in name; null: this model as it is before training.",
     "title": "Reference"
    },
    "trust_remote_code": {
     "default": false,
     "description": "Run Python code that comes with the model.",
     "title": "Trust Remote Code",
     "type": "boolean"
    }
   },
   "required": [
    "name"
   ],
   "title": "ModelConfig",
   "type": "object"
  },
  "OutputConfig": {
   "additionalProperties": false,
   "description": "Where the run writes, and which trackers get its metrics.",
   "properties": {
    "dir": {
     "anyOf": [
      {
       "minLength": 1,
       "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
       "type": "string"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Run directory; null: runs/<name>-<date>-<time>.",
     "title": "Dir"
    },
    "report_to": {
     "anyOf": [
      {
       "enum": [
        "azure_ml",
        "clearml",
        "codecarbon",
        "comet_ml",
        "dagshub",
        "dvclive",
        "flyte",
        "kubeflow",
        "mlflow",
        "neptune",
        "swanlab",
        "tensorboard",
        "trackio",
        "wandb"
       ],
       "type": "string"
      },
      {
       "items": {
        "enum": [
         "azure_ml",
         "clearml",
         "codecarbon",
         "comet_ml",
         "dagshub",
         "dvclive",
         "flyte",
         "kubeflow",
         "mlflow",
         "neptune",
         "swanlab",
         "tensorboard",
         "trackio",
         "wandb"
        ],
        "type": "string"
       },
       "type": "array"
      }
     ],
     "default": [],
     "description": "Experiment trackers that also get the metrics.",
     "title": "Report To"
    }
   },
   "title": "OutputConfig",
   "type": "object"
  },
  "PreferenceConfig": {
   "additionalProperties": false,
   "description": "What is minimized. Names and formulas: `wishbone.preference.losses`.",
   "properties": {
    "loss": {
     "anyOf": [
      {
       "enum": [
        "sigmoid",
        "sigmoid_norm",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "dpop",
        "simpo",
        "cpo",
        "orpo",
        "rdpo"
       ],
       "type": "string"
      },
      {
       "items": {
        "enum": [
         "sigmoid",
         "sigmoid_norm",
         "hinge",
         "ipo",
         "exo_pair",
         "nca_pair",
         "robust",
         "bco_pair",
         "sppo_hard",
         "aot",
         "aot_unpaired",
         "apo_zero",
         "apo_down",
         "discopop",
         "sft",
         "dpop",
         "simpo",
         "cpo",
         "orpo",
         "rdpo"
        ],
        "type": "string"
       },
       "minItems": 1,
       "type": "array"
      }
     ],
     "default": [
      "sigmoid"
     ],
     "description": "The loss, or several that are added up; sigmoid is DPO.",
     "title": "Loss"
    },
    "loss_weights": {
     "anyOf": [
      {
       "items": {
        "minimum": 0,
        "type": "number"
       },
       "type": "array"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "One weight per loss; null: every weight is 1.",
     "title": "Loss Weights"
    },
    "beta": {
     "default": 0.1,
     "description": "Strength of the pull towards the reference; tau in IPO.",
     "exclusiveMinimum": 0,
     "title": "Beta",
     "type": "number"
    },
    "label_smoothing": {
     "default": 0.0,
     "description": "Share of preference labels taken to be wrong (robust, exo_pair, aot).",
     "exclusiveMaximum": 0.5,
     "minimum": 0,
     "title": "Label Smoothing",
     "type": "number"
    },
    "f_divergence": {
     "default": "reverse_kl",
     "description": "Divergence between policy and reference (f-DPO).",
     "enum": [
      "reverse_kl",
      "forward_kl",
      "js_divergence",
      "alpha_divergence"
     ],
     "title": "F Divergence",
     "type": "string"
    },
    "f_alpha": {
     "default": 0.5,
     "description": "Alpha of alpha_divergence; 1 is reverse_kl.",
     "title": "F Alpha",
     "type": "number"
    },
    "ld_alpha": {
     "anyOf": [
      {
       "maximum": 1,
       "minimum": 0,
       "type": "number"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Weight of the tokens beyond the shorter completion (LD-DPO); null: all count 1.",
     "title": "Ld Alpha"
    },
    "use_weighting": {
     "default": false,
     "description": "Weight pairs by how likely the policy is to write them (WPO).",
     "title": "Use Weighting",
     "type": "boolean"
    },
    "discopop_tau": {
     "default": 0.05,
     "description": "Temperature of discopop.",
     "exclusiveMinimum": 0,
     "title": "Discopop Tau",
     "type": "number"
    },
    "simpo_gamma": {
     "default": 0.5,
     "description": "Target margin of simpo, in reward units.",
     "minimum": 0,
     "title": "Simpo Gamma",
     "type": "number"
    },
    "dpop_lambda": {
     "default": 50.0,
     "description": "Penalty of dpop on a chosen completion losing probability.",
     "minimum": 0,
     "title": "Dpop Lambda",
     "type": "number"
    },
    "rdpo_alpha": {
     "default": 0.01,
     "description": "Length penalty of rdpo, in reward units per token.",
     "minimum": 0,
     "title": "Rdpo Alpha",
     "type": "number"
    },
    "cpo_alpha": {
     "default": 1.0,
     "description": "Weight of the log-likelihood of the chosen completion in cpo.",
     "minimum": 0,
     "title": "Cpo Alpha",
     "type": "number"
    },
    "orpo_lambda": {
     "default": 0.1,
     "description": "Weight of the odds-ratio term in orpo.",
     "minimum": 0,
     "title": "Orpo Lambda",
     "type": "number"
    }
   },
   "title": "PreferenceConfig",
   "type": "object"
  },
  "TrainingConfig": {
   "additionalProperties": false,
   "description": "How the loss is minimized, and how much memory a step may take.",
   "properties": {
    "learning_rate": {
     "default": 5e-06,
     "description": "Peak learning rate, reached after the warm-up.",
     "exclusiveMinimum": 0,
     "maximum": 1,
     "title": "Learning Rate",
     "type": "number"
    },
    "epochs": {
     "default": 1.0,
     "description": "Passes over the training pairs.",
     "exclusiveMinimum": 0,
     "maximum": 100000,
     "title": "Epochs",
     "type": "number"
    },
    "max_steps": {
     "anyOf": [
      {
       "maximum": 1000000000,
       "minimum": 1,
       "type": "integer"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Optimizer steps; null: as many as epochs needs.",
     "title": "Max Steps"
    },
    "batch_size": {
     "default": 1,
     "description": "Pairs per device in one micro-step.",
     "maximum": 65536,
     "minimum": 1,
     "title": "Batch Size",
     "type": "integer"
    },
    "gradient_accumulation": {
     "default": 8,
     "description": "Micro-steps that make one optimizer step.",
     "maximum": 65536,
     "minimum": 1,
     "title": "Gradient Accumulation",
     "type": "integer"
    },
    "warmup_ratio": {
     "default": 0.1,
     "description": "Share of the steps in which the learning rate rises.",
     "maximum": 1,
     "minimum": 0,
     "title": "Warmup Ratio",
     "type": "number"
    },
    "scheduler": {
     "default": "linear",
     "description": "How the learning rate changes after the warm-up.",
     "enum": [
      "linear",
      "cosine",
      "cosine_with_restarts",
      "polynomial",
      "constant",
      "constant_with_warmup",
      "inverse_sqrt"
     ],
     "title": "Scheduler",
     "type": "string"
    },
    "weight_decay": {
     "default": 0.0,
     "description": "Decoupled weight decay.",
     "maximum": 1,
     "minimum": 0,
     "title": "Weight Decay",
     "type": "number"
    },
    "max_grad_norm": {
     "default": 1.0,
     "description": "Gradients are scaled down to this norm; 0: never.",
     "minimum": 0,
     "title": "Max Grad Norm",
     "type": "number"
    },
    "optimizer": {
     "default": "adamw_torch",
     "description": "Optimizer; the 8-bit, paged and lion ones need a GPU.",
     "enum": [
      "adamw_torch",
      "adamw_torch_fused",
      "adamw_8bit",
      "paged_adamw_8bit",
      "paged_adamw_32bit",
      "lion_32bit",
      "lion_8bit",
      "adafactor",
      "adagrad",
      "rmsprop",
      "sgd"
     ],
     "title": "Optimizer",
     "type": "string"
    },
    "seed": {
     "default": 42,
     "description": "Seed of adapter weights, data order and dropout.",
     "maximum": 4294967295,
     "minimum": 0,
     "title": "Seed",
     "type": "integer"
    },
    "logging_steps": {
     "default": 1,
     "description": "Optimizer steps between two lines of metrics.",
     "maximum": 1000000000,
     "minimum": 1,
     "title": "Logging Steps",
     "type": "integer"
    },
    "eval_steps": {
     "anyOf": [
      {
       "maximum": 1000000000,
       "minimum": 1,
       "type": "integer"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Optimizer steps between two evaluations; null: once an epoch.",
     "title": "Eval Steps"
    },
    "save_steps": {
     "anyOf": [
      {
       "maximum": 1000000000,
       "minimum": 1,
       "type": "integer"
      },
      {
       "type": "null"
      }
     ],
     "default": null,
     "description": "Optimizer steps between two checkpoints; null: once an epoch.",
     "title": "Save Steps"
    },
    "token_budget": {
     "anyOf": [
      {
       "const": "auto",
       "type": "string"
      },
      {
       "maximum": 16777216,
       "minimum": 2,
       "type": "integer"
      }
     ],
     "default": "auto",
     "description": "Most tokens in one row; changes memory and speed, never results.",
     "title": "Token Budget"
    },
    "activations": {
     "default": "auto",
     "description": "What happens to activations until the backward pass: keep, recompute, offload (recompute, layer inputs in host memory), or auto (keep what fits).",
     "enum": [
      "auto",
      "keep",
      "recompute",
      "offload"
     ],
     "title": "Activations",
     "type": "string"
    },
    "reference_store": {
     "default": "auto",
     "description": "Where reference log-probabilities are stored for later epochs and runs: auto (user's cache), off, or a file.",
     "minLength": 1,
     "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
     "title": "Reference Store",
     "type": "string"
    }
   },
   "title": "TrainingConfig",
   "type": "object"
  }
 },
 "additionalProperties": false,
 "description": "One training run. `model.name` and `data.train` are required, everything else has a default.",
 "properties": {
  "model": {
   "$ref": "#/$defs/ModelConfig",
   "description": "The model that learns."
  },
  "adapter": {
   "$ref": "#/$defs/AdapterConfig",
   "default": {
    "method": "lora",
    "rank": 16,
    "alpha": null,
    "dropout": 0.0,
    "target_modules": "all-linear"
   },
   "description": "What is trained."
  },
  "data": {
   "$ref": "#/$defs/DataConfig",
   "description": "The preference pairs."
  },
  "preference": {
   "$ref": "#/$defs/PreferenceConfig",
   "default": {
    "loss": [
     "sigmoid"
    ],
    "loss_weights": null,
    "beta": 0.1,
    "label_smoothing": 0.0,
    "f_divergence": "reverse_kl",
    "f_alpha": 0.5,
    "ld_alpha": null,
    "use_weighting": false,
    "discopop_tau": 0.05,
    "simpo_gamma": 0.5,
    "dpop_lambda": 50.0,
    "rdpo_alpha": 0.01,
    "cpo_alpha": 1.0,
    "orpo_lambda": 0.1
   },
   "description": "What is minimized."
  },
  "training": {
   "$ref": "#/$defs/TrainingConfig",
   "default": {
    "learning_rate": 5e-06,
    "epochs": 1.0,
    "max_steps": null,
    "batch_size": 1,
    "gradient_accumulation": 8,
    "warmup_ratio": 0.1,
    "scheduler": "linear",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optimizer": "adamw_torch",
    "seed": 42,
    "logging_steps": 1,
    "eval_steps": null,
    "save_steps": null,
    "token_budget": "auto",
    "activations": "auto",
    "reference_store": "auto"
   },
   "description": "How the loss is minimized."
  },
  "output": {
   "$ref": "#/$defs/OutputConfig",
   "default": {
    "dir": null,
    "report_to": []
   },
   "description": "Where the result goes."
  }
 },
 "required": [
  "model",
  "data"
 ],
 "title": "RunConfig",
 "type": "object"
};
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, runSchema };
  else module.exports = { runSchema };
}

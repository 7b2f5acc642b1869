"use strict";
/* What a person answers, as JSON Schema. Written by scripts/generate_builder_data.py. */
{
  const situationSchema = {
 "additionalProperties": false,
 "description": "Answers of a person; all but the model and the data have a default.",
 "properties": {
  "model": {
   "description": "smollm2-135m-instruct (built in), a model id on the hub or a directory.",
   "minLength": 1,
   "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
   "title": "Model",
   "type": "string"
  },
  "parameters_billion": {
   "anyOf": [
    {
     "exclusiveMinimum": 0,
     "maximum": 10000,
     "type": "number"
    },
    {
     "type": "null"
    }
   ],
   "default": null,
   "description": "Size of a model whose shape is not known, in billions of weights.",
   "title": "Parameters Billion"
  },
  "gpu": {
   "default": "none",
   "description": "Name of the GPU, such as RTX 4090, or none.",
   "minLength": 1,
   "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
   "title": "Gpu",
   "type": "string"
  },
  "gpu_memory_gib": {
   "anyOf": [
    {
     "exclusiveMinimum": 0,
     "maximum": 4096,
     "type": "number"
    },
    {
     "type": "null"
    }
   ],
   "default": null,
   "description": "Memory of each GPU in GiB; null: as the GPU of that name has.",
   "title": "Gpu Memory Gib"
  },
  "gpus": {
   "default": 1,
   "description": "How many of these GPUs train at the same time.",
   "maximum": 128,
   "minimum": 1,
   "title": "Gpus",
   "type": "integer"
  },
  "method": {
   "default": "lora",
   "description": "lora: an adapter; full: every weight.",
   "enum": [
    "lora",
    "full"
   ],
   "title": "Method",
   "type": "string"
  },
  "reference": {
   "default": "none",
   "description": "none: the model as it is before training; given: another model.",
   "enum": [
    "none",
    "given"
   ],
   "title": "Reference",
   "type": "string"
  },
  "reference_model": {
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
   "description": "The other model, where reference is given.",
   "title": "Reference Model"
  },
  "data": {
   "description": "Preference pairs: a file, a directory or a data set id on the hub.",
   "minLength": 1,
   "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
   "title": "Data",
   "type": "string"
  },
  "pairs": {
   "anyOf": [
    {
     "maximum": 1000000000000,
     "minimum": 1,
     "type": "integer"
    },
    {
     "type": "null"
    }
   ],
   "default": null,
   "description": "How many pairs there are; null: unknown.",
   "title": "Pairs"
  },
  "prompt_tokens": {
   "default": 128,
   "description": "Median length of a prompt in tokens.",
   "maximum": 16777216,
   "minimum": 1,
   "title": "Prompt Tokens",
   "type": "integer"
  },
  "completion_tokens": {
   "default": 256,
   "description": "Median length of a completion in tokens.",
   "maximum": 16777216,
   "minimum": 1,
   "title": "Completion Tokens",
   "type": "integer"
  },
  "longest_tokens": {
   "default": 1024,
   "description": "Longest prompt plus completion in tokens.",
   "maximum": 16777216,
   "minimum": 1,
   "title": "Longest Tokens",
   "type": "integer"
  },
  "noisy_labels": {
   "default": false,
   "description": "Some pairs have the worse completion as the chosen one.",
   "title": "Noisy Labels",
   "type": "boolean"
  },
  "learning_rate": {
   "anyOf": [
    {
     "exclusiveMinimum": 0,
     "maximum": 1,
     "type": "number"
    },
    {
     "type": "null"
    }
   ],
   "default": null,
   "description": "Rate you want, or had when the symptoms showed; null: advised.",
   "title": "Learning Rate"
  },
  "symptoms": {
   "default": [],
   "description": "What went wrong in an earlier run.",
   "items": {
    "enum": [
     "collapse",
     "lost_abilities",
     "repetition",
     "chosen_falling",
     "no_learning",
     "length_growth",
     "out_of_memory",
     "nan"
    ],
    "type": "string"
   },
   "title": "Symptoms",
   "type": "array"
  },
  "target": {
   "default": "wishbone",
   "description": "Trainer that the file is written for.",
   "enum": [
    "wishbone",
    "trl",
    "unsloth"
   ],
   "title": "Target",
   "type": "string"
  },
  "output": {
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
   "description": "File to write; null: standard output.",
   "title": "Output"
  }
 },
 "required": [
  "model",
  "data"
 ],
 "title": "Situation",
 "type": "object"
};
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, situationSchema };
  else module.exports = { situationSchema };
}

"use strict";
/* What a user answers, as JSON Schema. Written by scripts/generate_builder_data.py. */
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
   "type": "string",
   "flag": "--model",
   "accepted": "one line of text"
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
   "description": "Size of a model that is not known by name, in billions of weights.",
   "title": "Parameters Billion",
   "flag": "--parameters-billion",
   "accepted": "a number above 0 and of at most 10000, or null"
  },
  "gpu": {
   "default": "none",
   "description": "Name of the GPU, such as RTX 4090, or its memory, such as 24GB, or none.",
   "minLength": 1,
   "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
   "title": "Gpu",
   "type": "string",
   "flag": "--gpu",
   "accepted": "one line of text"
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
   "description": "Memory of each GPU in GiB; null: that of the named GPU.",
   "title": "Gpu Memory Gib",
   "flag": "--gpu-memory-gib",
   "accepted": "a number above 0 and of at most 4096, or null"
  },
  "gpus": {
   "default": 1,
   "description": "How many of these GPUs train at the same time.",
   "maximum": 128,
   "minimum": 1,
   "title": "Gpus",
   "type": "integer",
   "flag": "--gpus",
   "accepted": "a whole number from 1 to 128"
  },
  "method": {
   "default": "lora",
   "description": "lora: an adapter; full: every weight.",
   "enum": [
    "lora",
    "full"
   ],
   "title": "Method",
   "type": "string",
   "flag": "--method",
   "accepted": "one of lora, full"
  },
  "reference": {
   "default": "none",
   "description": "none: the model as it is before training; given: another model.",
   "enum": [
    "none",
    "given"
   ],
   "title": "Reference",
   "type": "string",
   "flag": "--reference",
   "accepted": "one of none, given"
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
   "description": "The other model, if reference is given.",
   "title": "Reference Model",
   "flag": "--reference-model",
   "accepted": "one line of text, or null"
  },
  "data": {
   "description": "Preference pairs: a file, a directory or a data set id on the hub.",
   "minLength": 1,
   "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$",
   "title": "Data",
   "type": "string",
   "flag": "--data",
   "accepted": "one line of text"
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
   "title": "Pairs",
   "flag": "--pairs",
   "accepted": "a whole number from 1 to 1000000000000, or null"
  },
  "prompt_tokens": {
   "default": 128,
   "description": "Median length of a prompt in tokens.",
   "maximum": 16777216,
   "minimum": 1,
   "title": "Prompt Tokens",
   "type": "integer",
   "flag": "--prompt-tokens",
   "accepted": "a whole number from 1 to 16777216"
  },
  "completion_tokens": {
   "default": 256,
   "description": "Median length of a completion in tokens.",
   "maximum": 16777216,
   "minimum": 1,
   "title": "Completion Tokens",
   "type": "integer",
   "flag": "--completion-tokens",
   "accepted": "a whole number from 1 to 16777216"
  },
  "longest_tokens": {
   "default": 1024,
   "description": "Longest prompt plus completion in tokens.",
   "maximum": 16777216,
   "minimum": 1,
   "title": "Longest Tokens",
   "type": "integer",
   "flag": "--longest-tokens",
   "accepted": "a whole number from 1 to 16777216"
  },
  "noisy_labels": {
   "default": false,
   "description": "Some pairs have the worse completion as the chosen one.",
   "title": "Noisy Labels",
   "type": "boolean",
   "flag": "--noisy-labels",
   "accepted": "true or false"
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
   "description": "Learning rate to use, or that of the run with the symptoms; null: recommended.",
   "title": "Learning Rate",
   "flag": "--learning-rate",
   "accepted": "a number above 0 and of at most 1, or null"
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
    "type": "string",
    "accepted": "one of collapse, lost_abilities, repetition, chosen_falling, no_learning, length_growth, out_of_memory, nan"
   },
   "title": "Symptoms",
   "type": "array",
   "flag": "--symptom",
   "accepted": "a list, each item one of collapse, lost_abilities, repetition, chosen_falling, no_learning, length_growth, out_of_memory, nan"
  },
  "target": {
   "default": "wishbone",
   "description": "Trainer for which the file is written.",
   "enum": [
    "wishbone",
    "trl",
    "unsloth"
   ],
   "title": "Target",
   "type": "string",
   "flag": "--target",
   "accepted": "one of wishbone, trl, unsloth"
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
   "title": "Output",
   "flag": "--output",
   "accepted": "one line of text, or null"
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

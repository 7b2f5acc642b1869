"""Code that was written for Unsloth: `FastLanguageModel` and the methods of its models."""

"""`FastLanguageModel` and the methods of its models, for code written for Unsloth."""

"""The three stages: cold start and rejection-sampling SFT (`sft`), sampling and filtering, GRPO."""

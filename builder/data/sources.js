"use strict";
/* Sources of the advice by key. Written by scripts/generate_builder_data.py. */
{
  const sources = {
 "dpo": {
  "title": "Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290",
  "address": "https://arxiv.org/abs/2305.18290"
 },
 "robust-dpo": {
  "title": "Ray Chowdhury et al. 2024, Provably Robust DPO, arXiv 2403.00409",
  "address": "https://arxiv.org/abs/2403.00409"
 },
 "tulu3": {
  "title": "Lambert et al. 2024, T\u00fclu 3, arXiv 2411.15124, and the commands in open-instruct's documentation",
  "address": "https://arxiv.org/abs/2411.15124"
 },
 "ld-dpo": {
  "title": "Liu et al. 2024, Length Desensitization in DPO, arXiv 2409.06411",
  "address": "https://arxiv.org/abs/2409.06411"
 },
 "rpo": {
  "title": "Pang et al. 2024, Iterative Reasoning Preference Optimization, arXiv 2404.19733",
  "address": "https://arxiv.org/abs/2404.19733"
 },
 "dpop": {
  "title": "Pal et al. 2024, Smaug: DPO-Positive, arXiv 2402.13228",
  "address": "https://arxiv.org/abs/2402.13228"
 },
 "likelihood-displacement": {
  "title": "Razin et al. 2024, Likelihood Displacement in DPO, arXiv 2410.08847",
  "address": "https://arxiv.org/abs/2410.08847"
 },
 "zephyr": {
  "title": "Tunstall et al. 2023, Zephyr, arXiv 2310.16944",
  "address": "https://arxiv.org/abs/2310.16944"
 },
 "trl-dpo": {
  "title": "TRL, DPOTrainer and its scripts/dpo.py",
  "address": "https://huggingface.co/docs/trl/dpo_trainer"
 },
 "qlora": {
  "title": "Dettmers et al. 2023, QLoRA, arXiv 2305.14314",
  "address": "https://arxiv.org/abs/2305.14314"
 },
 "lora-forgets-less": {
  "title": "Biderman et al. 2024, LoRA Learns Less and Forgets Less, arXiv 2405.09673",
  "address": "https://arxiv.org/abs/2405.09673"
 },
 "8bit-optimizers": {
  "title": "Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861",
  "address": "https://arxiv.org/abs/2110.02861"
 },
 "nvidia-capability": {
  "title": "NVIDIA, CUDA programming guide: compute capabilities",
  "address": "https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html"
 },
 "mixed-precision": {
  "title": "Micikevicius et al. 2017, Mixed Precision Training, arXiv 1710.03740",
  "address": "https://arxiv.org/abs/1710.03740"
 },
 "fp8-formats": {
  "title": "Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv 2209.05433",
  "address": "https://arxiv.org/abs/2209.05433"
 },
 "checkpointing": {
  "title": "Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174",
  "address": "https://arxiv.org/abs/1604.06174"
 },
 "unsloth-docs": {
  "title": "Unsloth, documentation and the DPO notebooks",
  "address": "https://docs.unsloth.ai"
 },
 "wishbone-benchmarks": {
  "title": "docs/benchmarks.md, measured on an H200",
  "address": ""
 },
 "wishbone-eight-bits": {
  "title": "docs/eight-bits.md",
  "address": ""
 },
 "wishbone-log": {
  "title": "docs/log.md",
  "address": ""
 },
 "wishbone-design": {
  "title": "docs/design.md and docs/configuration.md",
  "address": ""
 },
 "nvidia-data-sheets": {
  "title": "NVIDIA's data sheets and architecture white papers; each entry of gpus.json names its own",
  "address": ""
 },
 "model-configs": {
  "title": "The config.json of each model on the hub, in models.json",
  "address": ""
 },
 "ipo": {
  "title": "Azar et al. 2023, IPO, arXiv 2310.12036",
  "address": "https://arxiv.org/abs/2310.12036"
 },
 "simpo": {
  "title": "Meng et al. 2024, SimPO, arXiv 2405.14734",
  "address": "https://arxiv.org/abs/2405.14734"
 },
 "rdpo": {
  "title": "Park et al. 2024, Disentangling Length from Quality, arXiv 2403.19159",
  "address": "https://arxiv.org/abs/2403.19159"
 }
};
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, sources };
  else module.exports = { sources };
}

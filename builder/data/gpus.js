"use strict";
/* GPUs by name. Written by scripts/generate_builder_data.py. */
{
  const gpus = {
 "P100": {
  "memory_gib": 16.0,
  "capability": 6.0,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 21.2,
  "bandwidth_gbs": 732,
  "measured": null,
  "source": "Tesla P100 white paper, NVIDIA 2016; no tensor cores"
 },
 "V100 16GB": {
  "memory_gib": 16.0,
  "capability": 7.0,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 125,
  "bandwidth_gbs": 900,
  "measured": null,
  "source": "V100 data sheet, SXM2"
 },
 "V100 32GB": {
  "memory_gib": 32.0,
  "capability": 7.0,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 125,
  "bandwidth_gbs": 900,
  "measured": null,
  "source": "V100 data sheet, SXM2"
 },
 "T4": {
  "memory_gib": 15.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 65,
  "bandwidth_gbs": 320,
  "measured": null,
  "source": "T4 data sheet"
 },
 "A10": {
  "memory_gib": 22.49,
  "capability": 8.6,
  "bf16_tflops": 125,
  "fp8_tflops": null,
  "fp16_tflops": 125,
  "bandwidth_gbs": 600,
  "measured": null,
  "source": "A10 data sheet"
 },
 "A10G": {
  "memory_gib": 22.49,
  "capability": 8.6,
  "bf16_tflops": 70,
  "fp8_tflops": null,
  "fp16_tflops": 70,
  "bandwidth_gbs": 600,
  "measured": null,
  "source": "A10G data sheet"
 },
 "A30": {
  "memory_gib": 24.0,
  "capability": 8.0,
  "bf16_tflops": 165,
  "fp8_tflops": null,
  "fp16_tflops": 165,
  "bandwidth_gbs": 933,
  "measured": null,
  "source": "A30 data sheet"
 },
 "A40": {
  "memory_gib": 44.99,
  "capability": 8.6,
  "bf16_tflops": 149.7,
  "fp8_tflops": null,
  "fp16_tflops": 149.7,
  "bandwidth_gbs": 696,
  "measured": null,
  "source": "A40 data sheet"
 },
 "A100 40GB": {
  "memory_gib": 40.0,
  "capability": 8.0,
  "bf16_tflops": 312,
  "fp8_tflops": null,
  "fp16_tflops": 312,
  "bandwidth_gbs": 1555,
  "measured": null,
  "source": "A100 data sheet, SXM"
 },
 "A100 80GB": {
  "memory_gib": 80.0,
  "capability": 8.0,
  "bf16_tflops": 312,
  "fp8_tflops": null,
  "fp16_tflops": 312,
  "bandwidth_gbs": 2039,
  "measured": null,
  "source": "A100 data sheet, SXM"
 },
 "RTX A6000": {
  "memory_gib": 47.99,
  "capability": 8.6,
  "bf16_tflops": 154.8,
  "fp8_tflops": null,
  "fp16_tflops": 154.8,
  "bandwidth_gbs": 768,
  "measured": null,
  "source": "Ampere GA102 GPU architecture v2, NVIDIA 2021"
 },
 "RTX 3060 12GB": {
  "memory_gib": 12.0,
  "capability": 8.6,
  "bf16_tflops": 25.5,
  "fp8_tflops": null,
  "fp16_tflops": 25.5,
  "bandwidth_gbs": 360,
  "measured": null,
  "source": "GeForce RTX 30 comparison, NVIDIA, and Ampere GA102 GPU architecture v2, NVIDIA 2021; tensor rate as there: twice that of float32"
 },
 "RTX 3080 10GB": {
  "memory_gib": 10.0,
  "capability": 8.6,
  "bf16_tflops": 59.5,
  "fp8_tflops": null,
  "fp16_tflops": 59.5,
  "bandwidth_gbs": 760,
  "measured": null,
  "source": "Ampere GA102 GPU architecture v2, NVIDIA 2021"
 },
 "RTX 3090": {
  "memory_gib": 24.0,
  "capability": 8.6,
  "bf16_tflops": 71,
  "fp8_tflops": null,
  "fp16_tflops": 71,
  "bandwidth_gbs": 936,
  "measured": null,
  "source": "Ampere GA102 GPU architecture v2, NVIDIA 2021"
 },
 "RTX 4060 Ti 16GB": {
  "memory_gib": 16.0,
  "capability": 8.9,
  "bf16_tflops": 44.1,
  "fp8_tflops": 88.2,
  "fp16_tflops": 44.1,
  "bandwidth_gbs": 288,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
 },
 "RTX 4070": {
  "memory_gib": 11.99,
  "capability": 8.9,
  "bf16_tflops": 58.3,
  "fp8_tflops": 116.6,
  "fp16_tflops": 58.3,
  "bandwidth_gbs": 504,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
 },
 "RTX 4070 Super": {
  "memory_gib": 11.99,
  "capability": 8.9,
  "bf16_tflops": 71,
  "fp8_tflops": 142,
  "fp16_tflops": 71,
  "bandwidth_gbs": 504,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
 },
 "RTX 4070 Ti": {
  "memory_gib": 11.99,
  "capability": 8.9,
  "bf16_tflops": 80.2,
  "fp8_tflops": 160.4,
  "fp16_tflops": 80.2,
  "bandwidth_gbs": 504,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
 },
 "RTX 4070 Ti Super": {
  "memory_gib": 15.99,
  "capability": 8.9,
  "bf16_tflops": 88.2,
  "fp8_tflops": 176.4,
  "fp16_tflops": 88.2,
  "bandwidth_gbs": 672,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
 },
 "RTX 4080": {
  "memory_gib": 15.99,
  "capability": 8.9,
  "bf16_tflops": 97.5,
  "fp8_tflops": 194.9,
  "fp16_tflops": 97.5,
  "bandwidth_gbs": 717,
  "measured": null,
  "source": "Ada GPU architecture v2, NVIDIA 2023"
 },
 "RTX 4080 Super": {
  "memory_gib": 15.99,
  "capability": 8.9,
  "bf16_tflops": 104.4,
  "fp8_tflops": 208.9,
  "fp16_tflops": 104.4,
  "bandwidth_gbs": 736,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
 },
 "RTX 4090": {
  "memory_gib": 23.99,
  "capability": 8.9,
  "bf16_tflops": 165.2,
  "fp8_tflops": 330.3,
  "fp16_tflops": 165.2,
  "bandwidth_gbs": 1008,
  "measured": null,
  "source": "Ada GPU architecture v2, NVIDIA 2023"
 },
 "RTX 6000 Ada": {
  "memory_gib": 47.99,
  "capability": 8.9,
  "bf16_tflops": 364.2,
  "fp8_tflops": 728.5,
  "fp16_tflops": 364.2,
  "bandwidth_gbs": 960,
  "measured": null,
  "source": "RTX 6000 Ada data sheet"
 },
 "L4": {
  "memory_gib": 22.49,
  "capability": 8.9,
  "bf16_tflops": 121,
  "fp8_tflops": 242.5,
  "fp16_tflops": 121,
  "bandwidth_gbs": 300,
  "measured": null,
  "source": "L4 data sheet"
 },
 "L40": {
  "memory_gib": 44.99,
  "capability": 8.9,
  "bf16_tflops": 181,
  "fp8_tflops": 362,
  "fp16_tflops": 181,
  "bandwidth_gbs": 864,
  "measured": null,
  "source": "L40 data sheet"
 },
 "L40S": {
  "memory_gib": 44.99,
  "capability": 8.9,
  "bf16_tflops": 362,
  "fp8_tflops": 733,
  "fp16_tflops": 362,
  "bandwidth_gbs": 864,
  "measured": null,
  "source": "L40S data sheet"
 },
 "H100 PCIe": {
  "memory_gib": 79.65,
  "capability": 9.0,
  "bf16_tflops": 756,
  "fp8_tflops": 1513,
  "fp16_tflops": 756,
  "bandwidth_gbs": 2000,
  "measured": null,
  "source": "H100 data sheet"
 },
 "H100 SXM": {
  "memory_gib": 79.65,
  "capability": 9.0,
  "bf16_tflops": 989.4,
  "fp8_tflops": 1978.9,
  "fp16_tflops": 989.4,
  "bandwidth_gbs": 3350,
  "measured": null,
  "source": "H100 data sheet"
 },
 "H200": {
  "memory_gib": 140.4,
  "capability": 9.0,
  "bf16_tflops": 989.4,
  "fp8_tflops": 1978.9,
  "fp16_tflops": 989.4,
  "bandwidth_gbs": 4800,
  "measured": {
   "bf16_tflops": 688.2,
   "fp8_tflops": 1414.8,
   "source": "benchmarks/results/suite-h200.json"
  },
  "source": "H200 data sheet"
 },
 "B200": {
  "memory_gib": 179.06,
  "capability": 10.0,
  "bf16_tflops": 2250,
  "fp8_tflops": 4500,
  "fp16_tflops": 2250,
  "bandwidth_gbs": 7700,
  "measured": null,
  "source": "HGX B200 data sheet"
 },
 "RTX 5070": {
  "memory_gib": 11.94,
  "capability": 12.0,
  "bf16_tflops": 61.7,
  "fp8_tflops": 123.5,
  "fp16_tflops": 61.7,
  "bandwidth_gbs": 672,
  "measured": null,
  "source": "RTX Blackwell GPU architecture, NVIDIA 2025; tensor rate as there: twice that of float32"
 },
 "RTX 5070 Ti": {
  "memory_gib": 15.92,
  "capability": 12.0,
  "bf16_tflops": 87.9,
  "fp8_tflops": 175.8,
  "fp16_tflops": 87.9,
  "bandwidth_gbs": 896,
  "measured": null,
  "source": "RTX Blackwell GPU architecture, NVIDIA 2025"
 },
 "RTX 5080": {
  "memory_gib": 15.92,
  "capability": 12.0,
  "bf16_tflops": 112.6,
  "fp8_tflops": 225.1,
  "fp16_tflops": 112.6,
  "bandwidth_gbs": 960,
  "measured": null,
  "source": "RTX Blackwell GPU architecture, NVIDIA 2025"
 },
 "RTX 5090": {
  "memory_gib": 31.84,
  "capability": 12.0,
  "bf16_tflops": 209.5,
  "fp8_tflops": 419,
  "fp16_tflops": 209.5,
  "bandwidth_gbs": 1792,
  "measured": null,
  "source": "RTX Blackwell GPU architecture, NVIDIA 2025"
 },
 "RTX PRO 6000 Blackwell": {
  "memory_gib": 95.59,
  "capability": 12.0,
  "bf16_tflops": 503.8,
  "fp8_tflops": 1007.6,
  "fp16_tflops": 503.8,
  "bandwidth_gbs": 1792,
  "measured": null,
  "source": "RTX Blackwell PRO GPU architecture, NVIDIA 2025"
 }
};
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, gpus };
  else module.exports = { gpus };
}

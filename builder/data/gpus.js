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
 "RTX 2060 6GB": {
  "memory_gib": 6.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 25.8,
  "bandwidth_gbs": 336,
  "measured": null,
  "source": "Turing GPU architecture, NVIDIA 2018, and GeForce RTX 20 comparison; tensor rate with sums in float32: four times that of float32"
 },
 "RTX 2060 Super": {
  "memory_gib": 8.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 28.7,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "Turing GPU architecture, NVIDIA 2018, and GeForce RTX 20 comparison; tensor rate with sums in float32: four times that of float32"
 },
 "RTX 2070": {
  "memory_gib": 8.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 29.9,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "Turing GPU architecture, NVIDIA 2018, and GeForce RTX 20 comparison; tensor rate with sums in float32: four times that of float32"
 },
 "RTX 2070 Super": {
  "memory_gib": 8.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 36.2,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "Turing GPU architecture, NVIDIA 2018, and GeForce RTX 20 comparison; tensor rate with sums in float32: four times that of float32"
 },
 "RTX 2080": {
  "memory_gib": 8.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 40.3,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "Turing GPU architecture, NVIDIA 2018, and GeForce RTX 20 comparison; tensor rate with sums in float32: four times that of float32"
 },
 "RTX 2080 Super": {
  "memory_gib": 8.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 44.6,
  "bandwidth_gbs": 496,
  "measured": null,
  "source": "Turing GPU architecture, NVIDIA 2018, and GeForce RTX 20 comparison; tensor rate with sums in float32: four times that of float32"
 },
 "RTX 2080 Ti": {
  "memory_gib": 11.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 53.8,
  "bandwidth_gbs": 616,
  "measured": null,
  "source": "Turing GPU architecture, NVIDIA 2018, and GeForce RTX 20 comparison; tensor rate with sums in float32: four times that of float32"
 },
 "RTX 2060 Laptop": {
  "memory_gib": 6.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 18.4,
  "bandwidth_gbs": 336,
  "measured": null,
  "source": "1,920 CUDA cores at 1,200 MHz, 192 bit at 14 Gbps (NVIDIA's announcement, techquila.co.in 2019); tensor rate four times that of float32 as in Turing GPU architecture, NVIDIA 2018; at the largest power limit"
 },
 "RTX 2070 Laptop": {
  "memory_gib": 8.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 26.5,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "2,304 CUDA cores at 1,440 MHz, 256 bit at 14 Gbps (NVIDIA's announcement, techquila.co.in 2019); tensor rate four times that of float32 as in Turing GPU architecture, NVIDIA 2018; at the largest power limit"
 },
 "RTX 2080 Laptop": {
  "memory_gib": 8.0,
  "capability": 7.5,
  "bf16_tflops": null,
  "fp8_tflops": null,
  "fp16_tflops": 37.4,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "2,944 CUDA cores at 1,590 MHz, 256 bit at 14 Gbps (NVIDIA's announcement, tech-review.net 2019); tensor rate four times that of float32 as in Turing GPU architecture, NVIDIA 2018; at the largest power limit"
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
 "RTX 3050 8GB": {
  "memory_gib": 8.0,
  "capability": 8.6,
  "bf16_tflops": 18.2,
  "fp8_tflops": null,
  "fp16_tflops": 18.2,
  "bandwidth_gbs": 224,
  "measured": null,
  "source": "GeForce RTX 30 comparison, NVIDIA, and Ampere GA102 GPU architecture v2, NVIDIA 2021; tensor rate as there: twice that of float32"
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
 "RTX 3060 Ti": {
  "memory_gib": 8.0,
  "capability": 8.6,
  "bf16_tflops": 32.4,
  "fp8_tflops": null,
  "fp16_tflops": 32.4,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "GeForce RTX 30 comparison, NVIDIA, and Ampere GA102 GPU architecture v2, NVIDIA 2021; tensor rate as there: twice that of float32"
 },
 "RTX 3070": {
  "memory_gib": 8.0,
  "capability": 8.6,
  "bf16_tflops": 40.6,
  "fp8_tflops": null,
  "fp16_tflops": 40.6,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "GeForce RTX 30 comparison, NVIDIA, and Ampere GA102 GPU architecture v2, NVIDIA 2021; tensor rate as there: twice that of float32"
 },
 "RTX 3070 Ti": {
  "memory_gib": 8.0,
  "capability": 8.6,
  "bf16_tflops": 43.5,
  "fp8_tflops": null,
  "fp16_tflops": 43.5,
  "bandwidth_gbs": 608,
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
 "RTX 3080 12GB": {
  "memory_gib": 12.0,
  "capability": 8.6,
  "bf16_tflops": 61.3,
  "fp8_tflops": null,
  "fp16_tflops": 61.3,
  "bandwidth_gbs": 912,
  "measured": null,
  "source": "GeForce RTX 30 comparison, NVIDIA, and Ampere GA102 GPU architecture v2, NVIDIA 2021; tensor rate as there: twice that of float32"
 },
 "RTX 3080 Ti": {
  "memory_gib": 12.0,
  "capability": 8.6,
  "bf16_tflops": 68.2,
  "fp8_tflops": null,
  "fp16_tflops": 68.2,
  "bandwidth_gbs": 912,
  "measured": null,
  "source": "GeForce RTX 30 comparison, NVIDIA, and Ampere GA102 GPU architecture v2, NVIDIA 2021; tensor rate as there: twice that of float32"
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
 "RTX 3090 Ti": {
  "memory_gib": 24.0,
  "capability": 8.6,
  "bf16_tflops": 80.0,
  "fp8_tflops": null,
  "fp16_tflops": 80.0,
  "bandwidth_gbs": 1008,
  "measured": null,
  "source": "GeForce RTX 30 comparison, NVIDIA, and Ampere GA102 GPU architecture v2, NVIDIA 2021; tensor rate as there: twice that of float32"
 },
 "RTX 3050 Laptop 4GB": {
  "memory_gib": 4.0,
  "capability": 8.6,
  "bf16_tflops": 14.3,
  "fp8_tflops": null,
  "fp16_tflops": 14.3,
  "bandwidth_gbs": 192,
  "measured": null,
  "source": "2,048 CUDA cores at 1,740 MHz, 128 bit at 12 Gbps (80 W, hmc-tech.com); tensor rate twice that of float32 as in Ampere GA102 GPU architecture v2, NVIDIA 2021; at the largest power limit"
 },
 "RTX 3050 Ti Laptop": {
  "memory_gib": 4.0,
  "capability": 8.6,
  "bf16_tflops": 17.4,
  "fp8_tflops": null,
  "fp16_tflops": 17.4,
  "bandwidth_gbs": 192,
  "measured": null,
  "source": "2,560 CUDA cores at 1,695 MHz, 128 bit at 12 Gbps (80 W, notebookcheck.com); tensor rate twice that of float32 as in Ampere GA102 GPU architecture v2, NVIDIA 2021; at the largest power limit"
 },
 "RTX 3060 Laptop": {
  "memory_gib": 6.0,
  "capability": 8.6,
  "bf16_tflops": 26.1,
  "fp8_tflops": null,
  "fp16_tflops": 26.1,
  "bandwidth_gbs": 336,
  "measured": null,
  "source": "3,840 CUDA cores at 1,702 MHz, 192 bit at 14 Gbps (115 W, hardwaretimes.com 2021); tensor rate twice that of float32 as in Ampere GA102 GPU architecture v2, NVIDIA 2021; at the largest power limit"
 },
 "RTX 3070 Laptop": {
  "memory_gib": 8.0,
  "capability": 8.6,
  "bf16_tflops": 33.2,
  "fp8_tflops": null,
  "fp16_tflops": 33.2,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "5,120 CUDA cores at 1,620 MHz, 256 bit at 14 Gbps (125 W, hardwaretimes.com 2021); tensor rate twice that of float32 as in Ampere GA102 GPU architecture v2, NVIDIA 2021; at the largest power limit"
 },
 "RTX 3080 Laptop 8GB": {
  "memory_gib": 8.0,
  "capability": 8.6,
  "bf16_tflops": 42.0,
  "fp8_tflops": null,
  "fp16_tflops": 42.0,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "6,144 CUDA cores at 1,710 MHz, 256 bit at 14 Gbps (150 W, hardwaretimes.com 2021); tensor rate twice that of float32 as in Ampere GA102 GPU architecture v2, NVIDIA 2021; at the largest power limit"
 },
 "RTX 3080 Laptop 16GB": {
  "memory_gib": 16.0,
  "capability": 8.6,
  "bf16_tflops": 42.0,
  "fp8_tflops": null,
  "fp16_tflops": 42.0,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "6,144 CUDA cores at 1,710 MHz, 256 bit at 14 Gbps (150 W, hardwaretimes.com 2021); tensor rate twice that of float32 as in Ampere GA102 GPU architecture v2, NVIDIA 2021; at the largest power limit"
 },
 "RTX 3080 Ti Laptop": {
  "memory_gib": 16.0,
  "capability": 8.6,
  "bf16_tflops": 47.2,
  "fp8_tflops": null,
  "fp16_tflops": 47.2,
  "bandwidth_gbs": 512,
  "measured": null,
  "source": "7,424 CUDA cores at 1,590 MHz, 256 bit at 16 Gbps (hardwareluxx.de 2022); tensor rate twice that of float32 as in Ampere GA102 GPU architecture v2, NVIDIA 2021; at the largest power limit"
 },
 "RTX 4060": {
  "memory_gib": 7.99,
  "capability": 8.9,
  "bf16_tflops": 30.2,
  "fp8_tflops": 60.4,
  "fp16_tflops": 30.2,
  "bandwidth_gbs": 272,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
 },
 "RTX 4060 Ti 8GB": {
  "memory_gib": 7.99,
  "capability": 8.9,
  "bf16_tflops": 44.1,
  "fp8_tflops": 88.2,
  "fp16_tflops": 44.1,
  "bandwidth_gbs": 288,
  "measured": null,
  "source": "GeForce RTX 40 comparison, NVIDIA, and Ada GPU architecture v2, NVIDIA 2023; tensor rate as there: twice that of float32"
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
 "RTX 4050 Laptop": {
  "memory_gib": 5.99,
  "capability": 8.9,
  "bf16_tflops": 24.3,
  "fp8_tflops": 48.6,
  "fp16_tflops": 24.3,
  "bandwidth_gbs": 192,
  "measured": null,
  "source": "2,560 CUDA cores at 2,370 MHz, 96 bit at 16 Gbps (NVIDIA's announcement, hardwarenexus.com 2023); tensor rate twice that of float32 as in Ada GPU architecture v2, NVIDIA 2023; at the largest power limit"
 },
 "RTX 4060 Laptop": {
  "memory_gib": 7.99,
  "capability": 8.9,
  "bf16_tflops": 29.1,
  "fp8_tflops": 58.2,
  "fp16_tflops": 29.1,
  "bandwidth_gbs": 256,
  "measured": null,
  "source": "3,072 CUDA cores at 2,370 MHz, 128 bit at 16 Gbps (NVIDIA's announcement, hardwarenexus.com 2023); tensor rate twice that of float32 as in Ada GPU architecture v2, NVIDIA 2023; at the largest power limit"
 },
 "RTX 4070 Laptop": {
  "memory_gib": 7.99,
  "capability": 8.9,
  "bf16_tflops": 40.1,
  "fp8_tflops": 80.2,
  "fp16_tflops": 40.1,
  "bandwidth_gbs": 256,
  "measured": null,
  "source": "4,608 CUDA cores at 2,175 MHz, 128 bit at 16 Gbps (NVIDIA's announcement, hardwarenexus.com 2023); tensor rate twice that of float32 as in Ada GPU architecture v2, NVIDIA 2023; at the largest power limit"
 },
 "RTX 4080 Laptop": {
  "memory_gib": 11.99,
  "capability": 8.9,
  "bf16_tflops": 67.7,
  "fp8_tflops": 135.4,
  "fp16_tflops": 67.7,
  "bandwidth_gbs": 432,
  "measured": null,
  "source": "7,424 CUDA cores at 2,280 MHz, 192 bit at 18 Gbps (NVIDIA's announcement, hardwarenexus.com 2023); tensor rate twice that of float32 as in Ada GPU architecture v2, NVIDIA 2023; at the largest power limit"
 },
 "RTX 4090 Laptop": {
  "memory_gib": 15.99,
  "capability": 8.9,
  "bf16_tflops": 79.4,
  "fp8_tflops": 158.8,
  "fp16_tflops": 79.4,
  "bandwidth_gbs": 576,
  "measured": null,
  "source": "9,728 CUDA cores at 2,040 MHz, 256 bit at 18 Gbps (NVIDIA's announcement, hardwarenexus.com 2023); tensor rate twice that of float32 as in Ada GPU architecture v2, NVIDIA 2023; at the largest power limit"
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
 "H100 NVL": {
  "memory_gib": 93.58,
  "capability": 9.0,
  "bf16_tflops": 835,
  "fp8_tflops": 1671,
  "fp16_tflops": 835,
  "bandwidth_gbs": 3900,
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
 "B300": {
  "memory_gib": 268.2,
  "capability": 10.3,
  "bf16_tflops": 2250,
  "fp8_tflops": 4500,
  "fp16_tflops": 2250,
  "bandwidth_gbs": 8000,
  "measured": null,
  "source": "HGX B300 data sheet"
 },
 "RTX 5050": {
  "memory_gib": 7.96,
  "capability": 12.0,
  "bf16_tflops": 26.3,
  "fp8_tflops": 52.6,
  "fp16_tflops": 26.3,
  "bandwidth_gbs": 320,
  "measured": null,
  "source": "GeForce RTX 50 comparison, NVIDIA, and RTX Blackwell GPU architecture, NVIDIA 2025; tensor rate as there: twice that of float32"
 },
 "RTX 5060": {
  "memory_gib": 7.96,
  "capability": 12.0,
  "bf16_tflops": 38.4,
  "fp8_tflops": 76.8,
  "fp16_tflops": 38.4,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "GeForce RTX 50 comparison, NVIDIA, and RTX Blackwell GPU architecture, NVIDIA 2025; tensor rate as there: twice that of float32"
 },
 "RTX 5060 Ti 8GB": {
  "memory_gib": 7.96,
  "capability": 12.0,
  "bf16_tflops": 47.4,
  "fp8_tflops": 94.8,
  "fp16_tflops": 47.4,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "GeForce RTX 50 comparison, NVIDIA, and RTX Blackwell GPU architecture, NVIDIA 2025; tensor rate as there: twice that of float32"
 },
 "RTX 5060 Ti 16GB": {
  "memory_gib": 15.92,
  "capability": 12.0,
  "bf16_tflops": 47.4,
  "fp8_tflops": 94.8,
  "fp16_tflops": 47.4,
  "bandwidth_gbs": 448,
  "measured": null,
  "source": "GeForce RTX 50 comparison, NVIDIA, and RTX Blackwell GPU architecture, NVIDIA 2025; tensor rate as there: twice that of float32"
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
 "RTX 5050 Laptop": {
  "memory_gib": 7.96,
  "capability": 12.0,
  "bf16_tflops": 26.3,
  "fp8_tflops": 52.6,
  "fp16_tflops": 26.3,
  "bandwidth_gbs": 384,
  "measured": null,
  "source": "2,560 CUDA cores at 2,572 MHz, 128 bit at 24 Gbps (NVIDIA's announcement, thedailystar.net and techspot.com 2025: cores and clock of the desktop card); tensor rate twice that of float32 as in RTX Blackwell GPU architecture, NVIDIA 2025; at the largest power limit"
 },
 "RTX 5060 Laptop": {
  "memory_gib": 7.96,
  "capability": 12.0,
  "bf16_tflops": 33.2,
  "fp8_tflops": 66.4,
  "fp16_tflops": 33.2,
  "bandwidth_gbs": 384,
  "measured": null,
  "source": "3,328 CUDA cores at 2,497 MHz, 128 bit at 24 Gbps (cores and memory: fpsbench.com; no published source was found for the clock); tensor rate twice that of float32 as in RTX Blackwell GPU architecture, NVIDIA 2025; at the largest power limit"
 },
 "RTX 5070 Laptop": {
  "memory_gib": 7.96,
  "capability": 12.0,
  "bf16_tflops": 49.9,
  "fp8_tflops": 99.8,
  "fp16_tflops": 49.9,
  "bandwidth_gbs": 384,
  "measured": null,
  "source": "4,608 CUDA cores, 798 AI TOPS, 128 bit at 24 Gbps (NVIDIA's announcement, neowin.net 2025); dense FP16 with sums in float32 is a sixteenth of AI TOPS, as for desktop cards in RTX Blackwell GPU architecture, NVIDIA 2025; at the largest power limit"
 },
 "RTX 5070 Ti Laptop": {
  "memory_gib": 11.94,
  "capability": 12.0,
  "bf16_tflops": 62.0,
  "fp8_tflops": 124.0,
  "fp16_tflops": 62.0,
  "bandwidth_gbs": 672,
  "measured": null,
  "source": "5,888 CUDA cores, 992 AI TOPS, 192 bit at 28 Gbps (NVIDIA's announcement, neowin.net 2025); dense FP16 with sums in float32 is a sixteenth of AI TOPS, as for desktop cards in RTX Blackwell GPU architecture, NVIDIA 2025; at the largest power limit"
 },
 "RTX 5080 Laptop": {
  "memory_gib": 15.92,
  "capability": 12.0,
  "bf16_tflops": 83.4,
  "fp8_tflops": 166.8,
  "fp16_tflops": 83.4,
  "bandwidth_gbs": 896,
  "measured": null,
  "source": "7,680 CUDA cores, 1,334 AI TOPS, 256 bit at 28 Gbps (NVIDIA's announcement, neowin.net 2025); dense FP16 with sums in float32 is a sixteenth of AI TOPS, as for desktop cards in RTX Blackwell GPU architecture, NVIDIA 2025; at the largest power limit"
 },
 "RTX 5090 Laptop": {
  "memory_gib": 23.88,
  "capability": 12.0,
  "bf16_tflops": 114.0,
  "fp8_tflops": 228.0,
  "fp16_tflops": 114.0,
  "bandwidth_gbs": 896,
  "measured": null,
  "source": "10,496 CUDA cores, 1,824 AI TOPS, 256 bit at 28 Gbps (NVIDIA's announcement, neowin.net 2025); dense FP16 with sums in float32 is a sixteenth of AI TOPS, as for desktop cards in RTX Blackwell GPU architecture, NVIDIA 2025; at the largest power limit"
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

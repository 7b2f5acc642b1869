"""How results are shown: tables on a terminal, and the tables and pictures of docs/benchmarks.md."""

"""UnifiedReward-Think: train, run and measure a multimodal chain-of-thought reward model.

The flow: record -> messages -> completion -> verdict -> judgment -> reward or metric. Importing the package loads
nothing heavy; torch and transformers are imported by the modules that need them.
"""

__version__ = "0.1.0"

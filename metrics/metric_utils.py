"""The parts of a metric, under StyleGAN3's names: options, samples, features."""

from metrics.features import FeatureStats, compute_feature_stats_for_dataset, compute_feature_stats_for_generator
from metrics.options import MetricOptions
from metrics.samples import (
    Batch,
    broadcast_object,
    gather_rows,
    generate,
    generated_images,
    iterate,
    iterate_samples,
    passes,
    preserve_rng,
    rng,
    sum_over_ranks,
)

__all__ = ["Batch", "FeatureStats", "MetricOptions", "broadcast_object", "compute_feature_stats_for_dataset", "compute_feature_stats_for_generator",
           "gather_rows", "generate", "generated_images", "iterate", "iterate_samples", "passes", "preserve_rng", "rng", "sum_over_ranks"]

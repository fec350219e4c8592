"""view_consistency: do images of one latent from different cameras show one thing? Computed together with pose_error."""

from __future__ import annotations

from metrics.camera_metrics import ROW, camera_metrics
from metrics.metric_main import register_metric

register_metric("view_consistency{count}", **ROW)(camera_metrics)

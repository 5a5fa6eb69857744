"""The experiment: ablation, evaluation, metrics, statistics, report."""

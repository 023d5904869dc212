"""Values that follow from a configuration and can therefore not be set."""

from neobert_train.config.schema import ModelConfig, TrainConfig

FEED_FORWARD_MULTIPLE = 8


def compute_num_lanes(config: TrainConfig) -> int:
    """Micro-batches of one optimiser step over all processes."""
    return config.batch.global_batch_tokens // config.batch.micro_batch_tokens


def compute_accumulation_steps(config: TrainConfig, world_size: int) -> int:
    """Micro-batches of one optimiser step on each process."""
    return compute_num_lanes(config) // world_size


def compute_decay_end(config: TrainConfig) -> int:
    """The step at which the learning rate reaches its floor."""
    return max(1, round(config.scheduler.decay_fraction * config.trainer.max_steps))


def compute_feed_forward_width(model: ModelConfig) -> int:
    """Inner width of SwiGLU: two thirds of `intermediate_size`, rounded up to a multiple of 8."""
    width = int(2 * model.intermediate_size / 3)
    return -(-width // FEED_FORWARD_MULTIPLE) * FEED_FORWARD_MULTIPLE


def find_divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]

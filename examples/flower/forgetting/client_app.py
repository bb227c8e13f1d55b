"""The app of every client."""

import jax

from famr_jax.federated import flower
from forgetting import task

SEED = 0
LIKE = jax.eval_shape(task.MODEL.init, jax.random.key(SEED))


def load(context):
    """The images that this client holds."""
    return task.client(context.run_config, int(context.node_config[flower.INDEX]))


app = flower.client_app(
    task.LEARNER, LIKE, load, key=task.keys(SEED)[1], batch_size=task.BATCH_SIZE
)

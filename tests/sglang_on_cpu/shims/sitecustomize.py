"""Python imports this at its start: SGLang's imports of what has no CPU build resolve."""

import absent

absent.resolve("sgl_kernel", "torchvision")

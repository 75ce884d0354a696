"""TraceLens for TensorFlow: eager, `tf.function`, Keras and TF1 sessions."""

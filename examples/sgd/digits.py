"""Scikit-learn's SGDClassifier on handwritten digits, as a Python object that stays warm from run to run."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

EPOCHS = 20


class Trial:
    def setup(self, context):
        images, labels = load_digits(return_X_y=True)
        self.data = train_test_split(images / 16, labels, test_size=0.25, random_state=0)

    def train(self, cell, report, checkpoint):
        train_x, val_x, train_y, val_y = self.data
        classes = np.unique(train_y)
        model = SGDClassifier(
            loss="log_loss",
            learning_rate="constant",
            eta0=cell.lr,
            alpha=cell.factors["alpha"],
            penalty=cell.factors["penalty"],
            random_state=cell.seed,
        )
        report(0, val_loss=float(np.log(len(classes))))
        order = np.random.default_rng(cell.seed)
        for epoch in range(1, EPOCHS + 1):
            shuffled = order.permutation(len(train_x))
            model.partial_fit(train_x[shuffled], train_y[shuffled], classes)
            probabilities = model.predict_proba(val_x)
            report(epoch, val_loss=log_loss(val_y, probabilities, labels=classes), accuracy=model.score(val_x, val_y))
            if checkpoint.stop_requested():
                break

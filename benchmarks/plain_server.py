"""What one writes in an afternoon: FastAPI around transformers' text-generation pipeline, a prompt at a time.

The baseline of benchmarks.predict_throughput: `python -m benchmarks.plain_server FOLDER PORT`.
"""

import sys
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Question(BaseModel):
    prompt: str
    max_tokens: int = 16


def create_app(folder: str) -> FastAPI:
    app = FastAPI()
    generate: Any = pipeline("text-generation", model=folder, dtype="auto", device="cpu")
    # One at a time: more threads only take turns at the same cores, and a pipeline is not made for several.
    one_at_a_time = threading.Lock()

    @app.post("/predict")
    def predict(question: Question) -> dict[str, str]:
        with one_at_a_time:
            (found,) = generate(
                question.prompt, max_new_tokens=question.max_tokens, do_sample=False, return_full_text=False
            )
        return {"text": found["generated_text"]}

    @app.get("/readyz")
    def readyz() -> dict[str, bool]:
        return {"ready": True}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")

"""The library without the command line: parse controls, sample, read the verdicts.

python examples/python_api.py
"""

from ctrlgen import Generator, Guidance, Settings

generator = Generator("e2e")
settings = Settings(steps=24, guidance=Guidance(strength=3.0), candidates=4)
requests = [
    generator.request(["pos: PROPN PROPN AUX DET ADJ NOUN ADP DET NOUN NOUN PUNCT"], n=2, seed=1, id="universal"),
    generator.request(["pos: NNP NNP VBZ DT JJ NN ..."], n=2, seed=1, id="penn"),
]
for sample in generator.generate(requests, settings):
    print(f"{sample.id} {sample.index}: {sample.text}  success={sample.success} score={sample.score:.2f}")
    for result in sample.controls:
        if result.verdict.detail:
            print("    ", result.verdict.detail)

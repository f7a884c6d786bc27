"""The former name of `aligntrain.train`, kept for one release."""

from aligntrain.train.main import main

if __name__ == "__main__":
    raise SystemExit(main())

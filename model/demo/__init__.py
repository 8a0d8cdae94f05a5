"""The demo model: two million trained weights that answer small questions.

It exists so that every path of the engine can be shown, tested and timed with
answers that are right or wrong, on any machine, without a download.  The
folder is an ordinary Qwen3 model folder; beside the weights lie the questions
(`questions.py`), the token layout (`tokens.py`) and the script that trained
them (`train.py`).  Nothing is imported here, so that naming the package stays
free.
"""

import nbformat

from esparse_lab.reports.execute import Progress


def test_the_progress_line_shows_the_last_bar_without_terminal_codes():
    progress = Progress("a", nbformat.v4.new_notebook())
    for piece, shown in [
        ("\rladder:  10%|", "ladder:  10%|"),
        ("\n\rpruning: 20%|\x1b[32m█\x1b[0m", "pruning: 20%|█"),
        ("\x1b[A", "pruning: 20%|█"),
        ("\x1b[A\x1b[2K\rladder:  20%|", "ladder:  20%|"),
    ]:
        progress.write(piece)
        assert progress.bar == shown

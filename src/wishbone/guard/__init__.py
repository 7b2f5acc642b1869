"""The guard: it watches a run while it trains, says when it is not well, and slows or stops it where that was asked.

sample, answers, training_figures     what is measured
judge, advice                         how it is judged, and what to change
schedule                              when, within 3 % of the run's time
learning_rates, best_weights          what is done
guard                                 the callback that brings them together
"""

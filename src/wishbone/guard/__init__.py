"""The guard: watches a run while it trains, reports when something goes wrong, and slows or stops it if asked.

sample, answers, training_figures     what is measured
judge, advice                         how it is judged, and what to change
schedule                              when, within 3 % of the run's time
learning_rates, best_weights          what is done
guard                                 the callback that brings them together
"""

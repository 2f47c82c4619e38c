"""From labelled prompts to a bundle, and from its feedback to the next one: the modules in the order of the data.

    corpus      corpus  corpus_files  label_fields  build_data  datasheet  realism
    jury        jury_command  jury_run  jury  jury_cases  jury_endpoint  jury_bodies  jury_journal  jury_report
                agreement  steering_signs
    build       recipe  build  train  teacher  distill  adapters  crossval  probe  progress
      learning  fit  evidence  losses  forms  augment  surroundings  worst_form  processes  heap
      model     model  vocabulary  steering_head  marked_forms
      export    export  graph  int8  recover  card
    calibrate   calibrate_command  calibrate  audit_set  calibration_set  predictions  calibration_fit  policy_fit
                risk_control  step_losses  label_shift  calibration_report  calibration_text  calibration_plot
    guarantee   guarantee_command  guarantee  promise_test  transfer  cost_at_risk
    evaluate    evaluation_run  answers  evaluate  evaluation_detail  evaluation_page  robustness  attack  outcomes
                outcome_curves  rivals
    feedback    decision_log  feedback_set  outcome_noise  principals  off_policy
    retrain     loop_command  round_options  retrain  steps  frozen  held_out  candidates  choices  gate  tracking
    loop        loop  sequential

Each line begins with what it is about, mostly a verb of `python -m training`; `__main__` has the others. What serves is
imported (`classifier.engine`, `calibration`, `policy`, `inputs`), never copied, and imports nothing from here.
"""

package main

// policy is the stage's, with the leases to be filled in. The demo's are short,
// so that their end can be watched.
const policy = `version: 1
leases: %s
rules:
  - name: export-weights
    action: weights.export
    quorum:
      organisations: 2
      all:
        - atLeast: {k: 1, role: security}
        - atLeast: {k: 1, role: leadership}
        - atLeast: {k: 1, roles: [security, research, leadership, safety]}
    veto: [safety]
    expiry: 86400
  - name: launch-training
    action: training.launch
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    veto: [safety]
    expiry: 86400
    uses: 4
  - name: enrol-node
    action: node.enrol
    quorum: {atLeast: {k: 2, roles: [security, research, leadership]}}
    expiry: 86400
  - name: retire-node
    action: node.retire
    quorum: {atLeast: {k: 1, role: security}}
    expiry: 86400
  - name: change-policy
    action: policy.change
    quorum: {atLeast: {k: 4, roles: [security, research, leadership, safety]}}
    expiry: 86400
  - name: adopt-reference-set
    action: reference.adopt
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    veto: [safety]
    expiry: 86400
  - name: withdraw-reference-set
    action: reference.withdraw
    quorum: {atLeast: {k: 1, role: security}}
    expiry: 86400
  - name: change-people
    action: people.change
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    veto: [safety]
    expiry: 86400
  - name: change-notaries
    action: notaries.change
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    veto: [safety]
    expiry: 86400
  - name: change-ek-roots
    action: ekroots.change
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    veto: [safety]
    expiry: 86400
  - name: anyone-may-halt
    action: halt
    quorum: {atLeast: {k: 1, roles: [security, research, leadership, safety]}}
    expiry: 3600
  - name: resume-after-halt
    action: resume
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    expiry: 86400
`

//! What `inject -f` makes of a Deployment, played as a kubelet plays it: its containers in their order, each with its
//! own command, variables, user, capabilities and a read-only root, in a network namespace; its probes from the node.
//! So whatever the injector writes is tried on the binary that has to live with it.

#[cfg(test)]
mod kubelet;
#[cfg(test)]
mod scenarios;

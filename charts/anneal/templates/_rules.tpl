{{/*
Rights of the operator, exactly those it uses; docs/admin.md lists them, and a test compares the two.
There is no verb on Secrets, service accounts, pods/exec or pods/log anywhere.
*/}}
{{- define "anneal.clusterRules" -}}
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [anneal.dev]
  resources: [finetuneprofiles]
  verbs: [list, watch]
# Itself, the owner of the ConfigMaps and Leases the operator makes: they go when the release goes.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [{{ include "anneal.identity" . | quote }}]
  verbs: [get]
{{- if not .Values.watch.namespaces }}
# Profiles are shared between releases, so only the release that serves all namespaces judges them.
- apiGroups: [anneal.dev]
  resources: [finetuneprofiles/status]
  verbs: [patch]
{{- end }}
{{- end -}}

{{/* Rights in each namespace whose jobs are served. */}}
{{- define "anneal.namespaceRules" -}}
- apiGroups: [anneal.dev]
  resources: [finetunejobs]
  verbs: [list, watch, delete]
- apiGroups: [anneal.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [anneal.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# The Lease that says which release serves a namespace; overlapping releases are refused by it.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [list, create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [anneal-owner]
  verbs: [get, update]
{{- end -}}

{{/* Rights in the release's own namespace: its leader election. */}}
{{- define "anneal.releaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "anneal.leaseName" . }}]
  verbs: [get, update]
{{- end -}}

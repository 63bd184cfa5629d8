{{/* Name of the release's objects; short enough for every suffix the chart appends. */}}
{{- define "anneal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of cluster-wide objects and of roles in other namespaces: two releases of one name do not meet. */}}
{{- define "anneal.identity" -}}
{{- printf "%s:%s" .Release.Namespace (include "anneal.fullname" .) -}}
{{- end -}}

{{/* Value of the label anneal.dev/release on the operator's children (anneal_operator.settings makes the same). */}}
{{- define "anneal.releaseLabel" -}}
{{- $label := printf "%s.%s" .Release.Name .Release.Namespace -}}
{{- if gt (len $label) 63 -}}
{{- fail (printf "%s has %d characters and is a label value, which may have 63: choose a shorter release name or namespace" $label (len $label)) -}}
{{- end -}}
{{- $label -}}
{{- end -}}

{{- define "anneal.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "anneal.labels" -}}
{{ include "anneal.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: anneal
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "anneal.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "anneal.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false: name an existing ServiceAccount" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "anneal.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" $image.registry) $name -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "anneal.leaseName" -}}
{{- printf "%s-leader" (include "anneal.fullname" .) -}}
{{- end -}}

{{- define "anneal.progressService" -}}
{{- printf "%s-progress" (include "anneal.fullname" .) -}}
{{- end -}}

{{- define "anneal.progressSecret" -}}
{{- if eq .Values.progress.tls.source "Secret" -}}
{{- required "progress.tls.existingSecret is needed when progress.tls.source is Secret: name a Secret with tls.crt, tls.key and ca.crt" .Values.progress.tls.existingSecret -}}
{{- else -}}
{{- printf "%s-progress-tls" (include "anneal.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* Every name the progress Service answers to, as a JSON list. */}}
{{- define "anneal.progressNames" -}}
{{- $service := include "anneal.progressService" . -}}
{{- $ns := .Release.Namespace -}}
{{- list $service (printf "%s.%s" $service $ns) (printf "%s.%s.svc" $service $ns) (printf "%s.%s.svc.cluster.local" $service $ns) | toJson -}}
{{- end -}}
